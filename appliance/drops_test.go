package appliance

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"weft.network/weft/appliance/control"
)

// TestStopDoesNotWaitForObservers: somebody who waits for drops (weft observe) does not hold up the end of the daemon: the DNS server
// has let go by then, and the next daemon starts only after this one.
func TestStopDoesNotWaitForObservers(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{drops: newDrops()}
	waiting := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(waiting)
		d.serveDrops(w, r)
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, h, dropWait/2) }()

	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, control.SocketName))
	}}}
	answered := make(chan error, 1)
	go func() {
		res, err := client.Get("http://weft/v1/drops?wait=1")
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			err = errors.Join(err, res.Body.Close())
		}
		answered <- err
	}()
	<-waiting
	stop()
	if err := <-served; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the observer got %v", err)
	}
}
