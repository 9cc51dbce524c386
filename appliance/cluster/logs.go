package cluster

import (
	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"
)

// RouteLogs sends what the Kubernetes libraries log to the given function, one line a call, instead of standard error. They log
// through one global variable: call it once, before the first source is made.
func RouteLogs(log func(line string)) {
	klog.SetLogger(funcr.New(func(prefix, args string) {
		if prefix != "" {
			args = prefix + ": " + args
		}
		log(args)
	}, funcr.Options{}))
}
