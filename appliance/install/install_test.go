package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// systemd is a fake service manager that remembers.
type systemd struct {
	enabled, active bool     // weftd
	running         []string // the other units that are active
	calls           []string
	fail            string // the call that fails
}

func (s *systemd) run(_ context.Context, args ...string) error {
	call := strings.Join(args, " ")
	switch args[0] {
	case "is-enabled":
		return ok(s.enabled)
	case "is-active":
		if u := args[len(args)-1]; u != unit {
			return ok(slices.Contains(s.running, u))
		}
		return ok(s.active)
	case "reload":
		if !slices.Contains(s.running, args[1]) {
			return fmt.Errorf("%s cannot be reloaded because it is inactive", args[1])
		}
	}
	s.calls = append(s.calls, call)
	if call == s.fail {
		return errors.New("job failed")
	}
	switch args[0] {
	case "enable":
		s.enabled = true
	case "start", "restart":
		s.active = true
	case "disable":
		s.enabled, s.active = false, false
	}
	return nil
}

func ok(b bool) error {
	if !b {
		return errors.New("no")
	}
	return nil
}

// machine makes a root with these files ("dir/" is a folder) and a weft to install.
func machine(t *testing.T, files map[string]string) (Env, *systemd) {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		put(t, filepath.Join(root, path), text, strings.HasSuffix(path, "/"))
	}
	weft := filepath.Join(t.TempDir(), "weft-v1")
	put(t, weft, "weft v1", false)
	sd := &systemd{}
	return Env{Root: root, Binary: weft, Systemctl: sd.run}, sd
}

func put(t *testing.T, path, text string, dir bool) {
	t.Helper()
	parent := filepath.Dir(path)
	if dir {
		parent = path
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if !dir {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// tree lists every file and link below root with mode and content.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if target, err := os.Readlink(p); err == nil {
			all = append(all, rel+" -> "+target)
			return nil
		}
		b, err := os.ReadFile(p)
		all = append(all, fmt.Sprintf("%s %v %x", rel, info.Mode(), sha256.Sum256(b)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func plan(t *testing.T, f func(context.Context, Env, Options) (Plan, error), env Env, opts Options) Plan {
	t.Helper()
	p, err := f(t.Context(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func apply(t *testing.T, p Plan, env Env) {
	t.Helper()
	var done []Step
	if err := p.Apply(t.Context(), env, func(s Step) { done = append(done, s) }); err != nil {
		t.Fatal(err)
	}
	if len(done) != len(p.Steps) {
		t.Fatalf("%d steps reported, %d planned", len(done), len(p.Steps))
	}
}

// machines are the nodes of the golden files.
var machines = map[string]struct {
	files   map[string]string
	opts    Options
	running []string
}{
	"k3s-server": {files: map[string]string{
		"run/systemd/system/":                                  "",
		"var/lib/rancher/k3s/server/manifests/":                "",
		"etc/systemd/system/k3s.service":                       "ExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--flannel-backend=none' \\\n\t'--disable-network-policy' \\\n\t'--disable-kube-proxy' \\\n",
		"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "[plugins.cri]\n",
	}},
	"k3s-server-with-flannel": {files: map[string]string{
		"run/systemd/system/":                                  "",
		"run/systemd/netif/":                                   "",
		"var/lib/rancher/k3s/server/manifests/":                "",
		"etc/rancher/k3s/config.yaml":                          "# flannel-backend: none\ntls-san: [k3s.example]\n",
		"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "[plugins.cri.cni]\n  bin_dir = \"/var/lib/rancher/k3s/data/current/bin\"\n  conf_dir = \"/var/lib/rancher/k3s/agent/etc/cni/net.d\"\n",
		"sys/class/net/flannel.1":                              "",
		"sys/class/net/eth0":                                   "",
	}, running: []string{"systemd-networkd.service"}},
	"k3s-agent": {files: map[string]string{
		"run/systemd/system/": "",
		"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "[plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dirs = [\"/var/lib/rancher/k3s/data/cni\"]\n  conf_dir = \"/var/lib/rancher/k3s/agent/etc/cni/net.d\"\n",
	}},
	"kubeadm": {files: map[string]string{
		"run/systemd/system/":              "",
		"run/NetworkManager/":              "",
		"etc/NetworkManager/":              "",
		"etc/kubernetes/kubelet.conf":      "apiVersion: v1\n",
		"etc/containerd/config.toml":       "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"/etc/cni/net.d\"\n",
		"usr/lib/cni/loopback":             "reference loopback",
		"usr/lib/cni/portmap":              "reference portmap",
		"usr/lib/cni/bridge":               "reference bridge",
		"etc/cni/net.d/05-old.conf":        "{}",
		"etc/cni/net.d/87-podman.conflist": "{}",
		"sys/class/net/cali12345":          "",
		"sys/class/net/vxlan.calico":       "",
	}, running: []string{"NetworkManager.service"}},
	// Debian makes the run-time folder of networkd at boot whether networkd runs or not; a NetworkManager that was stopped leaves its.
	"bare": {files: map[string]string{
		"run/systemd/system/": "", "run/systemd/netif/": "", "run/NetworkManager/": "", "etc/NetworkManager/": "",
	}},
	"bare-manifests-no-systemd": {
		files: map[string]string{"etc/dhcpcd.conf": "hostname\n"},
		opts:  Options{Manifests: "/etc/weft/manifests"},
	},
}

// TestPlans plays the whole life on each machine: install, again, uninstall, again. Each golden file is that story, and
// afterwards the machine is what it was.
func TestPlans(t *testing.T) {
	for name, tc := range machines {
		t.Run(name, func(t *testing.T) {
			env, sd := machine(t, tc.files)
			sd.running = tc.running
			before := tree(t, env.Root)
			var story []string
			for _, step := range []struct {
				f    func(context.Context, Env, Options) (Plan, error)
				opts Options
			}{{Install, tc.opts}, {Install, tc.opts}, {Uninstall, Options{Purge: true}}, {Uninstall, Options{Purge: true}}} {
				p := plan(t, step.f, env, step.opts)
				story = append(story, p.String())
				apply(t, p, env)
			}
			for _, i := range []int{1, 3} {
				if !strings.Contains(story[i], "nothing to do") {
					t.Errorf("the second time it is not done:\n%s", story[i])
				}
			}
			if after := tree(t, env.Root); !slices.Equal(after, before) {
				t.Errorf("uninstall left\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			compare(t, filepath.Join("testdata", name+".txt"), strings.Join(story, "\n"))
		})
	}
}

func compare(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", golden, got, want)
	}
}

func TestInstalledFiles(t *testing.T) {
	env, sd := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	for path, want := range map[string]string{
		"/usr/local/bin/weft":              "weft v1",
		"/usr/local/bin/weftd":             "weft v1",
		"/usr/lib/cni/loopback.weft-saved": "reference loopback",
		"/usr/lib/cni/bridge":              "reference bridge",
	} {
		p := env.path(path)
		if target, err := os.Readlink(p); err == nil {
			p = env.path(target)
		}
		if got, err := os.ReadFile(p); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	for _, name := range Plugins {
		if !env.ours("/usr/lib/cni/" + name) {
			t.Errorf("/usr/lib/cni/%s is not a link to %s", name, binary)
		}
	}
	text, err := os.ReadFile(env.path(configFile))
	for _, line := range []string{"\nkubeconfig: \"/etc/kubernetes/kubelet.conf\"\n", "\ncniBinDir: \"/usr/lib/cni\"\n", "\n#cniConfDir: "} {
		if err != nil || !strings.Contains(string(text), line) {
			t.Errorf("weft.yaml lacks %q: %v", line, err)
		}
	}
	if !sd.enabled || !sd.active {
		t.Errorf("the daemon is not started: %v", sd.calls)
	}
}

func TestUpgradeRestartsTheDaemon(t *testing.T) {
	env, sd := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	put(t, env.Binary, "weft v2", false)
	sd.calls = nil
	p := plan(t, Install, env, Options{})
	apply(t, p, env)
	if got := strings.Join(sd.calls, ","); got != "restart weftd.service" || p.Steps[0].String() != "copy    /usr/local/bin/weft" || len(p.Steps) != 2 {
		t.Errorf("an upgrade took %v and called systemctl %s", p.Steps, got)
	}
	put(t, env.Binary, "weft v3", false)
	sd.calls = nil
	apply(t, plan(t, Install, env, Options{NoStart: true}), env)
	if sd.calls != nil {
		t.Errorf("with NoStart it called systemctl %v", sd.calls)
	}
}

// TestInterruptedUpgrade restarts a daemon that still runs the old binary although no file differs any more.
func TestInterruptedUpgrade(t *testing.T) {
	env, sd := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	put(t, env.path("/run/weft/weft.sock"), "", false)
	for path, age := range map[string]time.Duration{"/run/weft/weft.sock": time.Minute, unitFile: time.Hour, configFile: time.Hour, binary: time.Hour} {
		if err := os.Chtimes(env.path(path), time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, env.Binary, "weft v2", false)
	upgrade := plan(t, Install, env, Options{})
	for _, s := range upgrade.Steps {
		if s.Action != Run {
			if err := env.apply(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	sd.calls = nil
	apply(t, plan(t, Install, env, Options{}), env)
	if got := strings.Join(sd.calls, ","); got != "restart weftd.service" {
		t.Errorf("it called systemctl %q", got)
	}
}

func TestInstallFromItsOwnPlace(t *testing.T) {
	env, _ := machine(t, map[string]string{"usr/local/bin/weft": "weft v1"})
	env.Binary = env.path(binary)
	for _, s := range plan(t, Install, env, Options{}).Steps {
		if s.Action == Copy {
			t.Error("it copies itself onto itself")
		}
	}
}

func TestForeignPluginComesBackNewest(t *testing.T) {
	env, _ := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	replacePlugin := func(text string) {
		t.Helper()
		if err := os.Remove(env.path("/usr/lib/cni/loopback")); err != nil {
			t.Fatal(err)
		}
		put(t, env.path("/usr/lib/cni/loopback"), text, false)
	}
	replacePlugin("loopback 2, from a package upgrade")
	apply(t, plan(t, Install, env, Options{}), env)
	replacePlugin("loopback 3")
	apply(t, plan(t, Uninstall, env, Options{}), env)
	got, err := os.ReadFile(env.path("/usr/lib/cni/loopback"))
	if err != nil || string(got) != "loopback 3" {
		t.Errorf("loopback is %q, %v", got, err)
	}
	if env.exists("/usr/lib/cni/loopback" + saved) {
		t.Error("an older loopback is still kept aside")
	}
}

func TestUninstallKeepsConfigurationAndState(t *testing.T) {
	env, _ := machine(t, machines["bare"].files)
	apply(t, plan(t, Install, env, Options{CNIBinDir: "/opt/odd"}), env)
	put(t, env.path("/var/lib/weft/weft.db"), "leases", false)
	put(t, env.path("/etc/cni/net.d/10-weft.conflist"), "{}", false)
	put(t, env.path("/var/lib/cni/results/weft-0123-eth0"), "{}", false)
	p := plan(t, Uninstall, env, Options{})
	if !strings.Contains(p.String(), "1 Pod interfaces of weft are still in use") {
		t.Errorf("no word of the Pod that is left:\n%s", p)
	}
	apply(t, p, env)
	for _, path := range []string{configFile, "/var/lib/weft/weft.db"} {
		if !env.exists(path) {
			t.Errorf("%s is gone without --purge", path)
		}
	}
	for _, path := range []string{"/etc/cni/net.d/10-weft.conflist", "/opt/odd/weft-cni", binary, unitFile} {
		if env.exists(path) {
			t.Errorf("%s is still there", path)
		}
	}
}

// TestInterrupted fails each systemctl call in turn: planning again does the rest.
func TestInterrupted(t *testing.T) {
	for _, call := range []string{"daemon-reload", "enable weftd.service", "start weftd.service", "reload NetworkManager.service"} {
		env, sd := machine(t, machines["kubeadm"].files)
		sd.fail, sd.running = call, machines["kubeadm"].running
		err := plan(t, Install, env, Options{}).Apply(t.Context(), env, func(Step) {})
		if err == nil || !strings.Contains(err.Error(), call) {
			t.Errorf("%s failed and the error is %v", call, err)
		}
		sd.fail = ""
		apply(t, plan(t, Install, env, Options{}), env)
		if !sd.enabled || !sd.active {
			t.Errorf("after %s failed once, the daemon is not started: %v", call, sd.calls)
		}
	}
}

// TestUninstallKernel cleans the kernel after the daemon is stopped and before the files that say what it holds are gone, and
// tells of the kernel whoever does not ask for it.
func TestUninstallKernel(t *testing.T) {
	env, sd := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	put(t, env.path("/var/lib/weft/weft.db"), "leases", false)
	if p := plan(t, Uninstall, env, Options{}); !slices.ContainsFunc(p.Next, func(n string) bool { return strings.Contains(n, "--kernel") }) {
		t.Errorf("no word of what the kernel keeps:\n%s", p)
	}
	cleaned := 0
	env.CleanKernel = func(context.Context) error {
		cleaned++
		if sd.active {
			t.Error("the kernel is cleaned while the daemon runs")
		}
		for _, path := range []string{configFile, "/var/lib/weft/weft.db"} {
			if !env.exists(path) {
				t.Errorf("%s is gone before the kernel is cleaned", path)
			}
		}
		return nil
	}
	p := plan(t, Uninstall, env, Options{Kernel: true, Purge: true})
	apply(t, p, env)
	if cleaned != 1 || env.exists("/var/lib/weft") || strings.Contains(strings.Join(p.Next, " "), "--kernel") {
		t.Errorf("the kernel was cleaned %d times:\n%s", cleaned, p)
	}
}

// TestUninstallBesideADaemon refuses while a weftd runs that nobody would stop: it would put its CNI configuration back.
func TestUninstallBesideADaemon(t *testing.T) {
	for name, tc := range map[string]struct {
		systemd, active, refused bool
	}{
		"no systemd":                {refused: true},
		"service, started by hand":  {systemd: true, refused: true},
		"service, as it should run": {systemd: true, active: true},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"run/weft/": ""}
			if tc.systemd {
				files["run/systemd/system/"] = ""
			}
			env, sd := machine(t, files)
			apply(t, plan(t, Install, env, Options{}), env)
			sd.active = tc.active
			l, err := net.Listen("unix", env.path("/run/weft/weft.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if _, err := Uninstall(t.Context(), env, Options{}); (err != nil) != tc.refused || err != nil && !strings.Contains(err.Error(), "stop it first") {
				t.Errorf("error %v, refused should be %v", err, tc.refused)
			}
			l.Close()
			if _, err := Uninstall(t.Context(), env, Options{}); err != nil {
				t.Errorf("when the daemon is stopped: %v", err)
			}
		})
	}
}

func TestExistingConfiguration(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		opts       Options
		wantErr    string
		wantWarn   string
	}{
		{name: "kept", text: "kubeconfig: /root/weft.kubeconfig\ncniBinDir: /usr/lib/cni\n"},
		{name: "lacks what the node needs", text: "log: {level: debug}\n", wantWarn: "kubeconfig: /etc/kubernetes/kubelet.conf"},
		{name: "option says otherwise", text: "cniBinDir: /usr/lib/cni\n", opts: Options{CNIBinDir: "/opt/x"}, wantErr: "cniBinDir"},
		{name: "unknown key", text: "listen: 127.0.0.1:1\ncniBin: /x\n", wantErr: "line 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env, _ := machine(t, machines["kubeadm"].files)
			put(t, env.path(configFile), tc.text, false)
			p, err := Install(t.Context(), env, tc.opts)
			if (err != nil) != (tc.wantErr != "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Fatalf("error %v, want %q", err, tc.wantErr)
			}
			own := slices.DeleteFunc(p.Warnings, func(w string) bool { return !strings.Contains(w, configFile) })
			if (len(own) > 0) != (tc.wantWarn != "") || len(own) > 0 && !strings.Contains(strings.Join(own, "\n"), tc.wantWarn) {
				t.Errorf("warnings %q, want %q", own, tc.wantWarn)
			}
			if slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Path == configFile }) {
				t.Error("it changes weft.yaml")
			}
		})
	}
}

func TestUninstallWithBrokenConfiguration(t *testing.T) {
	env, _ := machine(t, machines["kubeadm"].files)
	apply(t, plan(t, Install, env, Options{}), env)
	put(t, env.path(configFile), "nonsense: [", false)
	p := plan(t, Uninstall, env, Options{})
	apply(t, p, env)
	if len(p.Warnings) == 0 || env.ours("/usr/lib/cni/loopback") {
		t.Errorf("the plugins are not restored:\n%s", p)
	}
}
