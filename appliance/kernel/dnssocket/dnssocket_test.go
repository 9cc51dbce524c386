package dnssocket

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestEcho sends packets of several clients through a batch and back, in both families.
func TestEcho(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		u, err := ListenUDP(netip.MustParseAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- echo(u) }()
		for c := range 3 {
			conn, err := net.Dial("udp", u.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				fmt.Fprintf(conn, "client %d packet %d from %s", c, i, conn.LocalAddr())
			}
			got := map[string]bool{}
			buffer := make([]byte, 100)
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			for range 20 {
				n, err := conn.Read(buffer)
				if err != nil {
					t.Fatal(err)
				}
				got[string(buffer[:n])] = true
			}
			for i := range 20 {
				want := fmt.Sprintf("%s: client %d packet %d from %s", conn.LocalAddr(), c, i, conn.LocalAddr())
				if !got[want] {
					t.Errorf("no answer %q in %v", want, got)
				}
			}
			_ = conn.Close()
		}
		_ = u.Close()
		if err := <-done; !IsClosed(err) {
			t.Errorf("%s: ended with %v", at, err)
		}
	}
}

func echo(u *UDP) error {
	b := u.NewBatch(8, 512)
	for {
		n, err := b.Read()
		if err != nil {
			return err
		}
		for i := range n {
			b.Reply(i, fmt.Appendf(b.Room(i), "%s: %s", b.From(i), b.Packet(i)))
		}
		_ = b.Flush()
	}
}

// TestHandOver sends packets while nobody reads, and has another socket object for the same socket answer them.
func TestHandOver(t *testing.T) {
	old, err := ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := old.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = old.Close()
	conn, err := net.Dial("udp", old.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 1000 {
		if _, err := fmt.Fprintf(conn, "%d", i); err != nil {
			t.Fatal(err)
		}
	}
	u, err := AdoptUDP(file)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if u.Addr() != old.Addr() {
		t.Errorf("the address is %s, was %s", u.Addr(), old.Addr())
	}
	b := u.NewBatch(64, 512)
	for i := 0; i < 1000; {
		n, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			if string(b.Packet(k)) != fmt.Sprint(i) {
				t.Fatalf("packet %d is %q", i, b.Packet(k))
			}
			i++
		}
	}
}

// TestAddressThatComesLater listens where the node has no address yet, and twice at once, as during a change of processes.
func TestAddressThatComesLater(t *testing.T) {
	for _, at := range []string{"198.51.100.53:5353", "[2001:db8::53]:5353"} {
		for range 2 {
			u, err := ListenUDP(netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			l, err := ListenTCP(netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		}
	}
}
