package appliance

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/packaging"
)

// TestConflistComesBack: a conflist that somebody removed is there again soon, but not on a node that is not ready.
func TestConflistComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := config.Default()
		cfg.RunDir, cfg.StateDir, cfg.CNIConfDir = dir, dir, filepath.Join(dir, "net.d")
		d := &Daemon{cfg: cfg, log: zap.NewNop(), loop: &reconcile.Loop{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.keepConflist(ctx)
		}()
		path := filepath.Join(cfg.CNIConfDir, packaging.ConflistName)
		exists := func() bool {
			<-time.After(2 * conflistLook)
			synctest.Wait()
			_, err := os.Stat(path)
			return err == nil
		}
		if exists() {
			t.Error("the node is not ready, and the runtime was told that it is")
		}
		if err := d.showConflist(); err != nil {
			t.Fatal(err)
		}
		d.ready.Store(true)
		if err := os.RemoveAll(cfg.CNIConfDir); err != nil {
			t.Fatal(err)
		}
		if !exists() {
			t.Error("somebody removed the conflist, and it stays away")
		}
		cancel()
		<-done
	})
}
