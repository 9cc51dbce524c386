// Package policy tests NetworkPolicies against the real kernel: what it holds, and which packets it lets pass.
package policy
