package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/cri"
	"weft.network/weft/appliance/model"
	"weft.network/weft/plugins/cni"
)

// callTime bounds one CNI call; runtimes give up after minutes, and a retry is better than a hang.
const callTime = 60 * time.Second

// handler serves the control socket.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cni", d.serveCNI)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.Status()) })
	mux.HandleFunc("GET /v1/leases", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.LeaseList()) })
	mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.Services()) })
	mux.HandleFunc("GET /v1/policies", d.servePolicies)
	mux.HandleFunc("GET /v1/drops", d.serveDrops)
	mux.HandleFunc("GET /v1/services/{namespace}/{name}", d.serveService)
	mux.HandleFunc("GET /v1/trace", d.serveTrace)
	mux.HandleFunc("GET /v1/lb", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.LoadBalancers()) })
	mux.HandleFunc("GET /v1/lb/pools", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.Pools()) })
	mux.HandleFunc("GET /v1/lb/why", d.serveWhy)
	mux.HandleFunc("GET /v1/dns", d.serveDNS)
	mux.HandleFunc("GET /v1/dns/query", d.serveDNSQuery)
	mux.HandleFunc("GET /v1/leaks", d.serveLeaks)
	mux.HandleFunc("POST /v1/release", d.serveRelease)
	d.bgpHandlers(mux)
	return mux
}

// serveCNI answers the early forwarder: the body is the call, the header Weft-Exit the exit code, the body what is printed.
func (d *Daemon) serveCNI(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	body, err := io.ReadAll(io.LimitReader(r.Body, cni.MaxInput+64<<10))
	if err != nil {
		control.WriteError(w, http.StatusBadRequest, fmt.Errorf("reading the call: %w", err))
		return
	}
	call, err := cni.ParseBody(body)
	if err != nil {
		control.WriteError(w, http.StatusBadRequest, err)
		return
	}
	if f := control.TakeFile(r); f != nil {
		defer func() { _ = f.Close() }()
		if isNetNS(f) {
			call.NSFD = int(f.Fd())
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTime)
	defer cancel()
	reply := cni.Serve(ctx, call, d.attacher)
	took := time.Since(start)
	command := call.Env["CNI_COMMAND"]
	d.metrics.call(call.Plugin, command, reply.Exit, took)
	if reply.Exit != 0 {
		d.log.Warn("CNI call failed", zap.String("plugin", call.Plugin), zap.String("command", command),
			zap.String("container", call.Env["CNI_CONTAINERID"]), zap.String("args", call.Env["CNI_ARGS"]),
			zap.ByteString("error", reply.Stdout), zap.Duration("took", took))
	} else {
		d.log.Debug("CNI call", zap.String("plugin", call.Plugin), zap.String("command", command),
			zap.String("container", call.Env["CNI_CONTAINERID"]), zap.Duration("took", took))
	}
	w.Header().Set("Weft-Exit", strconv.Itoa(reply.Exit))
	_, _ = w.Write(reply.Stdout)
}

// LeaseList returns the leases sorted by their first address.
func (d *Daemon) LeaseList() []*model.Lease {
	out := d.attacher.Leases()
	slices.SortFunc(out, func(a, b *model.Lease) int {
		return slices.CompareFunc(a.Addresses, b.Addresses, func(x, y addr) int { return x.Compare(y) })
	})
	return out
}

// LeakReport is the answer to GET /v1/leaks.
type LeakReport struct {
	Leases  int          `json:"leases"`
	Leaks   []LeakStatus `json:"leaks"`
	Runtime string       `json:"runtime"`
}

// LeakStatus is one lease that nothing stands behind any more.
type LeakStatus struct {
	Lease *model.Lease `json:"lease"`
	Why   string       `json:"why"`
}

func (d *Daemon) serveLeaks(w http.ResponseWriter, r *http.Request) {
	leaks, err := d.leaks(r.Context(), d.sandboxes(r.Context()))
	if err != nil {
		control.WriteError(w, http.StatusInternalServerError, err)
		return
	}
	report := LeakReport{Leases: len(d.attacher.Leases()), Leaks: []LeakStatus{}}
	if _, err := cri.Sandboxes(r.Context(), d.cfg.RuntimeSocket); err != nil {
		report.Runtime = err.Error()
	}
	for _, l := range leaks {
		report.Leaks = append(report.Leaks, LeakStatus{l.Lease, l.Why})
	}
	control.WriteJSON(w, report)
}

// sandboxes asks the runtime for the IDs it knows; nil when it does not answer. That is no reason to stop: what the kernel shows
// nothing of any more is dead all the same.
func (d *Daemon) sandboxes(ctx context.Context) map[string]bool {
	list, err := cri.Sandboxes(ctx, d.cfg.RuntimeSocket)
	if err != nil {
		d.log.Debug("the container runtime was not asked", zap.Error(err))
		return nil
	}
	known := map[string]bool{}
	for id := range list {
		known[id] = true
	}
	return known
}

// ReleaseRequest names the address of a lease to take down by hand.
type ReleaseRequest struct {
	Address addr `json:"address"`
	// Force also takes down an attachment whose interface exists.
	Force bool `json:"force"`
}

func (d *Daemon) serveRelease(w http.ResponseWriter, r *http.Request) {
	var req ReleaseRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		control.WriteError(w, http.StatusBadRequest, fmt.Errorf("reading the request: %w", err))
		return
	}
	for _, l := range d.attacher.Leases() {
		if !slices.Contains(l.Addresses, req.Address) {
			continue
		}
		if err := d.attacher.Release(r.Context(), l, req.Force); err != nil {
			control.WriteError(w, http.StatusConflict, err)
			return
		}
		control.WriteJSON(w, l)
		return
	}
	control.WriteError(w, http.StatusNotFound, fmt.Errorf("no lease holds %s on this node (weft ipam list shows all)", req.Address))
}

// serveHTTP serves metrics and health on the configured address. A port that is taken is no reason to leave the node
// without a network.
func (d *Daemon) serveHTTP(ctx context.Context) error {
	if d.cfg.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", d.cfg.Listen)
	if err != nil {
		d.log.Error("metrics and health are not served: choose another address with --listen", zap.Error(err))
		return nil // logged; a degraded state
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(d.gatherer(), promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.notReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	if d.cfg.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		d.log.Error("serving metrics and health", zap.Error(err))
	}
	return nil
}
