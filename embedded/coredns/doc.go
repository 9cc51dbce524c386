// Package coredns carries the DNS server: sockets of weft's own, a short way for the names of the cluster, and CoreDNS with a few
// plugins for everything else.
//
//	packet -> clusterdns.Names.Answer ---------------------------------> packet     names of the cluster, search-list misses
//	             | all else
//	             v
//	          dnsserver.Server: errors, loadbalance, weft, cache, forward -> packet
//
// CoreDNS is set up from a generated Corefile without caddy.Start: that would listen by itself, and a listener that is not ours
// can neither be handed to the next process nor read many packets at once. So directives are carried out on an Instance of our
// own, whose server type is the empty one; our plugins are registered for it under their own names.
//
// Not linked, on purpose: loop (it ends the process when it finds one; resolv.conf is checked instead), reload (it would fall
// back to caddy's default file), health, ready, prometheus and bind (their work is done here), and kubernetes as a directive (it
// would watch the cluster a second time). None of the linked plugins ends the process; a panic in one is an answer SERVFAIL.
package coredns
