package model

// Ports of the cluster's DNS: where it is asked for names, and for CoreDNS' metrics (at the address of the Service kube-dns).
const (
	DNSPort        = 53
	DNSMetricsPort = 9153
)
