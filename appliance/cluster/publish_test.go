package cluster

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"weft.network/weft/appliance/model"
)

// TestPublishAtOnce: a change after a quiet time is told without a wait, those right after it are gathered into one Snapshot.
func TestPublishAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := dnsSource(t)
		start := time.Now()
		var told []string
		go k.publish(t.Context(), func(s *model.Snapshot) {
			told = append(told, fmt.Sprintf("%v: %d", time.Since(start), len(s.Services)))
		})
		add := func(name string) {
			k.objects.mu.Lock()
			defer k.objects.mu.Unlock()
			s := &model.Service{Namespace: "default", Name: name}
			if k.objects.services.put(s.Key(), s) {
				k.objects.touch()
			}
		}
		pause(t.Context(), time.Second)
		for i := range 4 {
			add(fmt.Sprint("service-", i))
			synctest.Wait()
			pause(t.Context(), time.Millisecond)
		}
		pause(t.Context(), time.Second)
		add("later")
		synctest.Wait()
		if got, want := fmt.Sprint(told), "[1s: 1 1.005s: 4 2.004s: 5]"; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	})
}
