package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestConformance runs the network tests of the official suite. It takes minutes, so it must be asked for.
func TestConformance(t *testing.T) {
	needCluster(t)
	if !suiteWanted() {
		t.Skip("takes minutes: run make conformance")
	}
	known, err := readKnownFailures(knownFailuresText)
	if err != nil {
		t.Fatal(err)
	}
	focus := suiteFocus
	if text := os.Getenv("WEFT_E2E_FOCUS"); text != "" {
		focus = text
	}
	skip, isSet := os.LookupEnv("WEFT_E2E_SKIP")
	if !isSet {
		var patterns []string
		for _, left := range leftOut {
			fmt.Printf("left out: %s, because %s\n", left.pattern, left.reason)
			patterns = append(patterns, left.pattern)
		}
		skip = strings.Join(patterns, "|")
	}
	// For its Services of type LoadBalancer.
	if err := cluster.Apply(pool("192.168.77.200-192.168.77.230, 'fd00:77::200-fd00:77::230'")); err != nil {
		t.Fatal(err)
	}
	results, err := cluster.RunSuite(focus, skip)
	if err != nil {
		t.Error(err)
	}
	text := table(results, known)
	fmt.Print(text)
	if err := os.WriteFile(filepath.Join(cluster.logs, "conformance.txt"), []byte(text), 0o644); err != nil {
		t.Error(err)
	}
	for _, wrong := range judge(results, known) {
		t.Error(wrong)
	}
}

const reportExample = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Kubernetes e2e suite">
  <testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
  <testcase name="[It] [sig-network] works" status="passed" time="1.5"></testcase>
  <testcase name="[It] [sig-network] breaks" status="failed" time="2"><failure type="failed">[FAILED] no answer
and so on</failure></testcase>
  <testcase name="[It] [sig-network] hangs" status="timedout" time="3"></testcase>
  <testcase name="[It] [sig-network] wants more" status="skipped" time="0"><skipped message="skipped - needs 3 zones"></skipped></testcase>
  <testcase name="[It] [sig-node] not chosen" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
  <testcase name="[SynchronizedAfterSuite]" status="failed" time="0"></testcase>
</testsuite></testsuites>`

func TestReadReport(t *testing.T) {
	results, err := readReport([]byte(reportExample))
	if err != nil {
		t.Fatal(err)
	}
	want := `passed     1.5 s  [sig-network] works
failed     2.0 s  [sig-network] breaks
                  [FAILED] no answer
timedout    3.0 s  [sig-network] hangs
skipped    0.0 s  [sig-network] wants more
                  needs 3 zones
failed     0.0 s  [SynchronizedAfterSuite]
1 passed, 2 failed, 1 skipped themselves, 1 ended otherwise
`
	if got := table(results, nil); got != want {
		t.Errorf("have\n%s\nwant\n%s", got, want)
	}
}

func TestJudge(t *testing.T) {
	known, err := readKnownFailures("# Head.\n\n# The kernel\n# lacks it.\nbreaks\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "The kernel lacks it."; known["breaks"] != want {
		t.Errorf("the reason is %q, want %q", known["breaks"], want)
	}
	for _, test := range []struct {
		name, status string
		want         []string
	}{
		{"works", "passed", nil},
		{"works", "failed", []string{"failed: works"}},
		{"works", "timedout", []string{"timedout: works"}},
		{"works", "skipped", []string{"no test was run: does the focus match any?"}},
		{"breaks", "failed", nil},
		{"breaks", "passed", []string{"passed, take it off known-failures.txt: breaks"}},
	} {
		t.Run(test.name+" "+test.status, func(t *testing.T) {
			got := judge([]suiteResult{{Name: test.name, Status: test.status}}, known)
			if !slices.Equal(got, test.want) {
				t.Errorf("have %q, want %q", got, test.want)
			}
		})
	}
}

func TestKnownFailuresHaveReasons(t *testing.T) {
	if _, err := readKnownFailures(knownFailuresText); err != nil {
		t.Error(err)
	}
	if _, err := readKnownFailures("# Head.\n\nbreaks\n"); err == nil {
		t.Error("a test without a reason was accepted")
	}
}
