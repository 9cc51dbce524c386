package appliance

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// freePort is below those that the kernel gives to clients, so that none has it when the server comes.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		port := uint16(20000 + rand.IntN(10000))
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func ask(port uint16) (int, string) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestHealthServers(t *testing.T) {
	h := &healthServers{log: zap.NewNop(), servers: map[model.ServiceKey]*healthServer{}}
	key, port := model.ServiceKey{Namespace: "default", Name: "web"}, freePort(t)
	want := func(port uint16, local int) map[model.ServiceKey]service.HealthCheck {
		return map[model.ServiceKey]service.HealthCheck{key: {Port: port, LocalEndpoints: local}}
	}
	for _, tc := range []struct {
		local, code int
		text        string
	}{
		{2, 200, `"localEndpoints":2`},
		{0, 503, `"localEndpoints":0`},
		{1, 200, `"service":{"name":"web","namespace":"default"}`},
	} {
		h.apply(want(port, tc.local))
		h.apply(want(port, tc.local))
		if code, body := ask(port); code != tc.code || !strings.Contains(body, tc.text) {
			t.Errorf("%d local endpoints: %d %s", tc.local, code, body)
		}
	}
	other := freePort(t)
	h.apply(want(other, 1))
	if code, body := ask(other); code != 200 {
		t.Errorf("the new port: %d %s", code, body)
	}
	if code, _ := ask(port); code != 0 {
		t.Error("the old port still answers")
	}
	h.apply(nil)
	if code, _ := ask(other); code != 0 {
		t.Error("answers although the Service is gone")
	}
}

// TestHealthServerSaysItOnce: a port that somebody else has is tried with every round, and spoken of once.
func TestHealthServerSaysItOnce(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	h := &healthServers{log: zap.New(core), servers: map[model.ServiceKey]*healthServer{}}
	key, port := model.ServiceKey{Namespace: "default", Name: "web"}, uint16(taken.Addr().(*net.TCPAddr).Port)
	for range 3 {
		h.apply(map[model.ServiceKey]service.HealthCheck{key: {Port: port, LocalEndpoints: 1}})
	}
	if logs.Len() != 1 {
		t.Errorf("said %d times", logs.Len())
	}
	_ = taken.Close()
	h.apply(map[model.ServiceKey]service.HealthCheck{key: {Port: port, LocalEndpoints: 1}})
	if code, _ := ask(port); code != 200 {
		t.Errorf("free again, and answered with %d", code)
	}
	h.apply(nil)
}
