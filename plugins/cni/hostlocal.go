package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// referenceDir is where the reference plugin host-local keeps what it gave unless the configuration names another folder: for each
// network a folder, for each address a file, in it the container and on a second line its interface. Containers that were there
// before weft took that plugin's place run on with those addresses.
const referenceDir = "/var/lib/cni/networks"

// before is the folder of this call's network.
func (t *task) before() string {
	dir := t.conf.IPAM.DataDir
	if dir == "" {
		dir = referenceDir
	}
	return filepath.Join(dir, t.conf.Name)
}

// takenBefore says to whom the reference plugin gave an address that it has not taken back.
func (t *task) takenBefore(a netip.Addr) string {
	text, err := os.ReadFile(filepath.Join(t.before(), a.String()))
	if err != nil {
		return ""
	}
	id, _, _ := strings.Cut(string(text), "\n")
	return fmt.Sprintf("container %s has it from the host-local that was here before weft", strings.TrimSpace(id))
}

// releaseBefore takes back what the reference plugin gave this attachment. Its first versions wrote no interface.
func (t *task) releaseBefore() error {
	dir := t.before()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return types.NewError(types.ErrIOFailure, "reading the addresses that the host-local before weft gave", err.Error())
	}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue // last_reserved_ip.0, lock
		}
		path := filepath.Join(dir, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		owner := strings.Join(strings.Fields(string(text)), " ")
		if owner != t.env("CNI_CONTAINERID") && owner != t.env("CNI_CONTAINERID")+" "+t.env("CNI_IFNAME") {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return types.NewError(types.ErrIOFailure, "taking back an address that the host-local before weft gave", err.Error())
		}
	}
	return nil
}
