package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// gobgpSink is gobgpd, the program that is made of the same library as weft's speaker.
func (l *Lab) gobgpSink(ctx context.Context, n *Netns, peers int) (*sink, error) {
	dir, err := os.MkdirTemp("", "gobgpd") // a socket's path may not be long
	if err != nil {
		return nil, err
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	var config strings.Builder
	config.WriteString("[global.config]\nas = 64512\nrouter-id = \"192.0.2.1\"\n")
	for i := range peers {
		fmt.Fprintf(&config, "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"192.0.2.%d\"\npeer-as = %d\n[neighbors.transport.config]\npassive-mode = true\n"+
			"[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n", 101+i, 64600+i)
	}
	if err := os.WriteFile(dir+"/gobgpd.toml", []byte(config.String()), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(l.bin, "gobgpd"), "-f", dir+"/gobgpd.toml", "--api-hosts", "unix://"+dir+"/api", "--pprof-disable", "--log-level", "error")
	if err := n.start(cmd); err != nil {
		return nil, fmt.Errorf("starting gobgpd: %w", err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	conn, err := grpc.NewClient("unix://"+dir+"/api", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	l.Cleanup(func() { _ = conn.Close() })
	client := api.NewGobgpApiClient(conn)
	s := &sink{
		name: "gobgpd",
		sessions: func() (up int) {
			stream, err := client.ListPeer(ctx, &api.ListPeerRequest{})
			if err != nil {
				return -1
			}
			for {
				r, err := stream.Recv()
				if err != nil {
					return up
				}
				if r.Peer.State.SessionState == api.PeerState_ESTABLISHED {
					up++
				}
			}
		},
		routes: func() int {
			r, err := client.GetTable(ctx, &api.GetTableRequest{
				TableType: api.TableType_GLOBAL, Family: &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST},
			})
			if err != nil {
				return -1
			}
			return int(r.NumPath)
		},
		pid: func() int { return cmd.Process.Pid },
	}
	return s, poll(ctx, 5*time.Millisecond, bgpWait, "gobgpd", func() bool { return s.routes() == 0 })
}
