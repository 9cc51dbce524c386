package appliance

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// healthServers answers load balancers that ask whether this node has endpoints of a Service (spec.healthCheckNodePort). The
// form of the answer is kube-proxy's, which cloud load balancers and people know.
type healthServers struct {
	log *zap.Logger

	mu      sync.Mutex
	servers map[model.ServiceKey]*healthServer
	failed  map[model.ServiceKey]uint16 // ports that could not be served, which is said once
}

type healthServer struct {
	port  uint16
	mu    sync.Mutex
	local int
	key   model.ServiceKey
	http  *http.Server
}

// apply makes these the ports that are served. It may be called again with the same.
func (h *healthServers) apply(want map[model.ServiceKey]service.HealthCheck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, s := range h.servers {
		if w, ok := want[key]; !ok || w.Port != s.port {
			_ = s.http.Close()
			delete(h.servers, key)
		}
	}
	failed := map[model.ServiceKey]uint16{}
	defer func() { h.failed = failed }()
	for key, w := range want {
		s := h.servers[key]
		if s == nil {
			var err error
			if s, err = startHealthServer(key, w.Port); err != nil {
				if h.failed[key] != w.Port {
					h.log.Warn("a health check port cannot be served", zap.Stringer("service", key), zap.Error(err))
				}
				failed[key] = w.Port
				continue // tried again with the next round
			}
			h.servers[key] = s
		}
		s.mu.Lock()
		s.local = w.LocalEndpoints
		s.mu.Unlock()
	}
}

func startHealthServer(key model.ServiceKey, port uint16) (*healthServer, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("healthCheckNodePort %d is in use by another process of this node: %w", port, err)
	}
	s := &healthServer{port: port, key: key}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		// The only other end is Close; a broken listener shows as a load balancer that finds nobody.
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			_ = l.Close()
		}
	}()
	return s, nil
}

// ServeHTTP answers 200 with local endpoints and 503 without.
func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	local := s.local
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
	if local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"service":             map[string]string{"namespace": s.key.Namespace, "name": s.key.Name},
		"localEndpoints":      local,
		"serviceProxyHealthy": true,
	})
}
