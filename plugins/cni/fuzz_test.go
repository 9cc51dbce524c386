package cni

import (
	"context"
	"strings"
	"testing"
)

// FuzzServe sends anything: there is always an answer that a runtime can read, and never a panic.
func FuzzServe(f *testing.F) {
	for i := range Plugins() {
		for j, command := range commands {
			for _, v := range versions {
				f.Add(i, j, "c1", "eth0", "K8S_POD_NAME=web;IP=10.1.0.2", []byte(configuration(Plugins()[i], command, v)))
			}
		}
	}
	f.Add(0, 0, "", "", "", []byte("null"))
	f.Add(3, 0, "c1", "eth0", "MAC=x", []byte(`{"cniVersion": "0.3.1", "name": "n", "prevResult": {"ips": [null], "interfaces": [null], "routes": [null], "dns": null}}`))
	f.Add(1, 0, "c1", "eth0", "", []byte(`{"cniVersion": "1.0.0", "name": "n", "ipam": {"ranges": [[{"subnet": "::/0"}]], "routes": [null]}, "prevResult": {"ips": [{}]}}`))
	f.Fuzz(func(t *testing.T, plugin, command int, container, ifName, args string, stdin []byte) {
		names := append(Plugins(), "weft", "")
		call := Call{Plugin: names[uint(plugin)%uint(len(names))], Stdin: stdin, NSFD: -1, Env: map[string]string{
			"CNI_COMMAND": append(commands, "", "x")[uint(command)%uint(len(commands)+2)], "CNI_CONTAINERID": container, "CNI_IFNAME": ifName,
			"CNI_ARGS": args, "CNI_NETNS": "/run/netns/x",
		}}
		if strings.Contains(string(stdin), "esolv") {
			t.Skip("reads files")
		}
		r := Serve(context.Background(), call, &fakeAttacher{})
		v := "1.1.0"
		if r.Exit == 0 && call.Env["CNI_COMMAND"] == "ADD" {
			conf, err := parseConf("ADD", stdin)
			if err != nil {
				t.Fatal(err)
			}
			v = conf.CNIVersion
		}
		wellFormed(t, call.Env["CNI_COMMAND"], v, r)
	})
}

// FuzzParseBody: what is read is what was sent.
func FuzzParseBody(f *testing.F) {
	f.Add([]byte("PLUGIN=x\x00CNI_A=B\x00\x00rest"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseBody(body)
		if err == nil && !strings.HasSuffix(string(body), "\x00"+string(c.Stdin)) {
			t.Errorf("%q is not the end of %q", c.Stdin, body)
		}
	})
}
