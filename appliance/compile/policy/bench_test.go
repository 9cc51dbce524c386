package policy_test

import (
	"maps"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
)

// BenchmarkCompile has 1,000 policies, 5,000 Pods and 110 of them on this node.
func BenchmarkCompile(b *testing.B) {
	const pods, apps = 5000, 500
	snap, in := policytest.Large(1000, pods, 110)
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			(&policy.Compiler{}).Compile(snap, in)
		}
	})
	var c policy.Compiler
	c.Compile(snap, in)
	n := 0
	b.Run("a Pod elsewhere changes its label", func(b *testing.B) {
		for b.Loop() {
			n++
			p := *policytest.LargePod(1000+n%1000, apps)
			p.Labels = policytest.LargePod(n%apps, apps).Labels
			next := *snap
			next.Pods = maps.Clone(snap.Pods)
			next.Pods[p.Key()] = &p
			snap = &next
			c.Compile(snap, in)
		}
	})
	b.Run("a Pod of this node with policies of its own comes and goes", func(b *testing.B) {
		for b.Loop() {
			n++
			p := policytest.LargePod(pods+200+n%200, apps)
			p.Node = "a"
			next := *snap
			next.Pods = maps.Clone(snap.Pods)
			next.Pods[p.Key()] = p
			more := in
			more.Attached = append(slices.Clone(in.Attached), policy.Attached{Pod: p.PodRef, Addresses: p.Addresses})
			c.Compile(&next, more)
			c.Compile(snap, in)
		}
	})
}
