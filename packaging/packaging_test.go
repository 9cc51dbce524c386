package packaging_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"go.yaml.in/yaml/v3"

	"weft.network/weft/appliance/config"
	"weft.network/weft/packaging"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// uncomment removes the "#" in front of keys and leaves prose, which has a space after it, alone.
func uncomment(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !isProse(rest) {
			line = rest
		}
		out.WriteString(line)
	}
	return out.String()
}

// isProse tells "# words" and "#   auto  words" from "#key: value" and "#  key: value".
func isProse(rest string) bool {
	key, _, ok := strings.Cut(strings.TrimLeft(rest, " "), ":")
	return !ok || strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "  ") || strings.Contains(key, " ")
}

// TestConfigShowsTheDefaults wants weft.yaml to change nothing as it is, and to show every key with its default.
func TestConfigShowsTheDefaults(t *testing.T) {
	text, err := packaging.Config(nil)
	if err != nil {
		t.Fatal(err)
	}
	asIs, err := config.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	defaults := dump(t, config.Default())
	if got := dump(t, asIs); got != defaults {
		t.Errorf("weft.yaml as it is changes the defaults:\n%s", got)
	}
	var want, got map[string]any
	if err := yaml.Unmarshal([]byte(defaults), &want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(uncomment(string(text))), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("with every key uncommented weft.yaml says\n%v\nwant the defaults\n%v", got, want)
	}
}

func dump(t *testing.T, c config.Config) string {
	t.Helper()
	b, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfigSetsKeys(t *testing.T) {
	text, err := packaging.Config(map[string]string{"kubeconfig": "/etc/kubernetes/kubelet.conf", "cniBinDir": `/odd "dir": # x`})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kubeconfig != "/etc/kubernetes/kubelet.conf" || c.CNIBinDir != `/odd "dir": # x` {
		t.Errorf("kubeconfig %q, cniBinDir %q", c.Kubeconfig, c.CNIBinDir)
	}
	if _, err := packaging.Config(map[string]string{"nosuch": "x"}); err == nil {
		t.Error("an unknown key was accepted")
	}
}

func TestConflist(t *testing.T) {
	for _, tc := range []struct{ golden, runDir, stateDir string }{
		{"default.conflist", config.Default().RunDir, config.Default().StateDir},
		{"folders.conflist", "/run/weft-lab/n1", "/var/lib/weft-lab/n1"},
	} {
		got, err := packaging.Conflist(tc.runDir, tc.stateDir)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", tc.golden)
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s", golden, got)
		}
		list, err := libcni.NetworkConfFromBytes(got)
		if err != nil {
			t.Fatal(err)
		}
		if list.CNIVersion != "1.1.0" || len(list.Plugins) != 1 {
			t.Errorf("%s: a current runtime reads version %s and %d plugins", golden, list.CNIVersion, len(list.Plugins))
		}
	}
}

// TestRBACVerbs is the list of permissions: a change here is a change of what weft may do in every cluster.
func TestRBACVerbs(t *testing.T) {
	want := []string{
		"configmaps get,list,watch only coredns-custom",
		"configmaps get,update only weft-load-balancer",
		"discovery.k8s.io/endpointslices get,list,watch",
		"events create,patch",
		"namespaces get,list,watch",
		"networking.k8s.io/networkpolicies get,list,watch",
		"nodes get,list,watch",
		"pods get,list,watch",
		"secrets get,list,watch only weft-bgp",
		"services create",
		"services get,list,watch",
		"services/status update",
		"weft.network/bgppeers get,list,watch",
		"weft.network/loadbalancerpools get,list,watch",
		"weft.network/loadbalancerpools/status update",
	}
	var got []string
	dec := yaml.NewDecoder(bytes.NewReader(packaging.RBAC))
	for {
		var object struct {
			Kind  string
			Rules []struct {
				APIGroups []string `yaml:"apiGroups"`
				Resources []string
				Verbs     []string
				Names     []string `yaml:"resourceNames"`
			}
		}
		if dec.Decode(&object) != nil {
			break
		}
		for _, rule := range object.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					line := strings.TrimPrefix(group+"/"+resource, "/") + " " + strings.Join(rule.Verbs, ",")
					if len(rule.Names) > 0 {
						line += " only " + strings.Join(rule.Names, ",")
					}
					got = append(got, line)
				}
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("rules are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
