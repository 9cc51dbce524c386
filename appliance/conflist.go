package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/packaging"
)

// readyMark is a file in the run directory, which is empty after a boot: it says that this boot has been ready once.
const readyMark = "ready"

// forwardsMark is another one: weft switched the forwarding of IPv6 on in this boot.
const forwardsMark = "forwarding"

// hideConflist removes the conflist of an earlier boot: until this one is ready, kubelet must say NotReady and why. When only
// the daemon restarts it stays, so that the node does not flap.
func (d *Daemon) hideConflist() error {
	if _, err := os.Stat(filepath.Join(d.cfg.RunDir, readyMark)); err == nil {
		return nil
	}
	err := os.Remove(filepath.Join(d.cfg.CNIConfDir, packaging.ConflistName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the CNI configuration of the last boot: %w", err)
	}
	return nil
}

// showConflist writes the conflist, last and atomically, once everything else is in place.
func (d *Daemon) showConflist() error {
	text, err := packaging.Conflist(d.cfg.RunDir, d.cfg.StateDir)
	if err != nil {
		return err
	}
	path := filepath.Join(d.cfg.CNIConfDir, packaging.ConflistName)
	if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, text) {
		if err := os.MkdirAll(d.cfg.CNIConfDir, 0o755); err != nil {
			return fmt.Errorf("making the CNI configuration directory: %w", err)
		}
		if err := writeFile(path, text); err != nil {
			return fmt.Errorf("writing the CNI configuration: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.cfg.RunDir, readyMark), nil, 0o600); err != nil {
		return fmt.Errorf("noting that this boot is ready: %w", err)
	}
	return nil
}

// conflistLook is how often it is looked whether the conflist is still there.
const conflistLook = 2 * time.Second

// keepConflist puts the conflist back when somebody took it away, as who cleans up after another network does with the whole folder:
// kubelet would say NotReady, and no Pod would start until weftd does.
func (d *Daemon) keepConflist(ctx context.Context) {
	ticker := time.NewTicker(conflistLook)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !d.ready.Load() || d.loop.NoFabric {
			continue
		}
		if _, err := os.Stat(filepath.Join(d.cfg.CNIConfDir, packaging.ConflistName)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := d.showConflist(); err != nil {
			d.log.Error("putting the CNI configuration back", zap.Error(err))
			continue
		}
		d.log.Warn("the CNI configuration was gone and is there again", zap.String("folder", d.cfg.CNIConfDir))
	}
}

// writeFile replaces a file in one step: a reader sees the old or the new one, never half. The temporary name ends in a way
// that no runtime reads.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
