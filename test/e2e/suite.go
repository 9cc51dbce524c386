package e2e

import (
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	suiteFocus = `\[sig-network\].*\[Conformance\]|NetworkPolic`
	suiteLimit = 100 * time.Minute
)

// leftOut are the tests that a run leaves out, as regular expressions of their names, and why.
var leftOut = []struct{ pattern, reason string }{
	{`\[Feature:SCTPConnectivity\]`, "the kernels that run these tests have no SCTP sockets"},
	{`\[Feature:Networking-`, "there is no Internet, and no performance to measure beside the control plane"},
	{`\[Feature:PerformanceDNS\]`, "it measures the DNS server with 10,000 Services"},
	{`\[Feature:KubeProxyNFAcct\]|\[Feature:LocalhostNodePorts\]|\] KubeProxy `, "it looks into kube-proxy's iptables mode"},
	{`\[Provider:|\[Disruptive\]`, "it logs in to the nodes of a cloud"},
	{`check kube-proxy urls`, "it asks kube-proxy itself for its state"},
	{`load balancer cleanup finalizer`, "the finalizer is written by the controller of a cloud"},
	{`switch session affinity for LoadBalancer service with Local`, "it wants several nodes to answer for one address, and on a segment one does"},
	{`ExternalTrafficPolicy: Local .* should work for type=LoadBalancer`, "it takes every client on the nodes' segment, which the suite is here, for a node"},
	{`rejected for evicted pods`, "it waits for a Pod to be evicted for its use of the disk, which the kubelet cannot measure here"},
	{`\] DNS configMap `, "it changes the configuration of a CoreDNS Deployment with a forwarder"},
}

//go:embed known-failures.txt
var knownFailuresText string

// suiteWanted reports whether this run is for the official suite: it needs larger images.
func suiteWanted() bool { return os.Getenv("WEFT_CONFORMANCE") == "1" }

// suiteResult is the outcome of one test of the official suite.
type suiteResult struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"` // passed, failed, skipped, or how else it ended
	Seconds float64 `xml:"time,attr"`
	Skipped struct {
		Message string `xml:"message,attr"`
	} `xml:"skipped"`
	Failure string `xml:"failure"`
}

// suiteProcesses is how many tests of the suite run at once: they mostly wait. Those that it calls serial run alone.
const suiteProcesses = "4"

// RunSuite runs the tests of the official suite whose names match focus and not skip. It returns the results of all that
// were started, and an error when the suite did not come to its end.
func (c *Cluster) RunSuite(focus, skip string) ([]suiteResult, error) {
	// On the switch: neither a node nor a Pod, like a client outside of the cluster.
	config, err := os.ReadFile(c.Nodes[0].Path(adminConfig))
	if err != nil {
		return nil, err
	}
	if err := c.fabric.WriteFile(adminConfig, string(config), 0o600); err != nil {
		return nil, err
	}
	report := filepath.Join(c.dir, "report") // the folder of the logs may lie where the switch has its own version
	suite, err := c.fabric.Start("suite", "ginkgo", "--procs="+suiteProcesses, "--no-color", "-v",
		"--timeout="+(suiteLimit-time.Minute).String(), "--focus="+focus, "--skip="+skip, filepath.Join(c.bin, "e2e.test"), "--",
		"--provider=skeleton", "--kubeconfig="+adminConfig, "--kubectl-path="+filepath.Join(c.bin, "kubectl"), "--report-dir="+report,
		fmt.Sprintf("--num-nodes=%d", len(c.Nodes))) // found out by the first process only
	if err != nil {
		return nil, err
	}
	fmt.Printf("the suite's log is %s\n", suite.log)
	var watched []*process
	for _, node := range c.Nodes {
		watched = append(watched, node.processes...)
	}
	ended := wait("the suite to end", suiteLimit, watched, func() error {
		select {
		case <-suite.ended:
			return nil
		default:
			return errors.New("it still runs")
		}
	})
	content, err := os.ReadFile(filepath.Join(report, "junit_01.xml"))
	if err != nil {
		return nil, errors.Join(ended, fmt.Errorf("reading the suite's report: %w%s", err, suite.tail()))
	}
	if err := os.WriteFile(filepath.Join(c.logs, "junit.xml"), content, 0o644); err != nil {
		return nil, errors.Join(ended, err)
	}
	results, err := readReport(content)
	return results, errors.Join(ended, err)
}

// readReport reads the tests that were run, or skipped themselves, from a report in JUnit's format.
func readReport(content []byte) ([]suiteResult, error) {
	var report struct {
		Results []suiteResult `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(content, &report); err != nil {
		return nil, fmt.Errorf("reading the suite's report: %w", err)
	}
	var started []suiteResult
	for _, result := range report.Results {
		name, isTest := strings.CutPrefix(result.Name, "[It] ")
		result.Name = name
		// A test that was not chosen has no reason, and what is not a test matters when it fails.
		if result.Status == "skipped" && result.Skipped.Message == "skipped" || !isTest && result.Status == "passed" {
			continue
		}
		started = append(started, result)
	}
	return started, nil
}

// readKnownFailures reads known-failures.txt and returns the reasons by the names of the tests.
func readKnownFailures(text string) (map[string]string, error) {
	known := map[string]string{}
	var reason []string
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		comment, isComment := strings.CutPrefix(line, "#")
		switch {
		case line == "":
			reason = nil
		case isComment:
			reason = append(reason, strings.TrimSpace(comment))
		case reason == nil:
			return nil, fmt.Errorf("known-failures.txt:%d: %s has no reason: write it as a comment above", number+1, line)
		default:
			known[line] = strings.Join(reason, " ")
			reason = nil
		}
	}
	return known, nil
}

// judge returns what is wrong with the results, given the known failures.
func judge(results []suiteResult, known map[string]string) (wrong []string) {
	ran := 0
	for _, result := range results {
		_, isKnown := known[result.Name]
		switch {
		case result.Status == "skipped":
			continue
		case result.Status != "passed" && !isKnown:
			wrong = append(wrong, result.Status+": "+result.Name)
		case result.Status == "passed" && isKnown:
			wrong = append(wrong, "passed, take it off known-failures.txt: "+result.Name)
		}
		ran++
	}
	if ran == 0 {
		wrong = append(wrong, "no test was run: does the focus match any?")
	}
	return wrong
}

// table prints the results for a person: one line a test, the reason below it, and a sum.
func table(results []suiteResult, known map[string]string) string {
	var text strings.Builder
	counts := map[string]int{}
	for _, result := range results {
		counts[result.Status]++
		fmt.Fprintf(&text, "%-7s %6.1f s  %s\n", result.Status, result.Seconds, result.Name)
		reason := strings.TrimPrefix(result.Skipped.Message, "skipped - ")
		if result.Status != "passed" && result.Status != "skipped" {
			if reason = known[result.Name]; reason == "" {
				reason, _, _ = strings.Cut(strings.TrimSpace(result.Failure), "\n")
			}
		}
		if reason != "" {
			fmt.Fprintf(&text, "%18s%s\n", "", reason)
		}
	}
	fmt.Fprintf(&text, "%d passed, %d failed, %d skipped themselves, %d ended otherwise\n", counts["passed"], counts["failed"],
		counts["skipped"], len(results)-counts["passed"]-counts["failed"]-counts["skipped"])
	return text.String()
}
