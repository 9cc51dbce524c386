package appliance

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFDStore sends a socket to a service manager and takes it back.
func TestFDStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("LISTEN_PID", "1") // meant for another process
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_FDNAMES", "x")
	store, files := openFDStore()
	if len(files) > 0 {
		t.Errorf("took the files of another process: %v", files)
	}
	if v := os.Getenv("LISTEN_FDS"); v != "" {
		t.Errorf("children would be told of %s files", v)
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.keep("dns-udp-127.0.0.1", u); err != nil {
		t.Fatal(err)
	}
	if err := store.forget("dns-udp-127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	text, rights := make([]byte, 200), make([]byte, syscall.CmsgSpace(4))
	n, rn, _, _, err := manager.ReadMsgUnix(text, rights)
	if err != nil || string(text[:n]) != "FDSTORE=1\nFDNAME=dns-udp-127.0.0.1" {
		t.Fatalf("%q %v", text[:n], err)
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v %v", messages, err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v %v", fds, err)
	}
	copied, err := net.FilePacketConn(os.NewFile(uintptr(fds[0]), "copy"))
	if err != nil || copied.LocalAddr().String() != u.LocalAddr().String() {
		t.Errorf("the copy is %v, %v", copied, err)
	}
	if n, _, _, _, err = manager.ReadMsgUnix(text, rights); err != nil || !strings.HasPrefix(string(text[:n]), "FDSTOREREMOVE=1\n") {
		t.Errorf("%q %v", text[:n], err)
	}
	// The socket must not have become one that blocks, or closing it would hang.
	done := make(chan struct{})
	go func() {
		_, _ = u.Read(make([]byte, 1))
		close(done)
	}()
	_ = u.Close()
	<-done

	var none fdStore
	if err := none.keep("x", manager); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}
