package gobgp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/peering"
)

// The speaker runs in a process of its own, a child of the daemon: gobgp 3.37.0 dies of messages that any configured peer may send (one of an
// unknown type is enough), and a panic in one of its goroutines would take the daemon along. When the child dies, its peers keep our
// routes (graceful restart) until the next one is there.
//
// Both ends speak JSON, a line each, over a socket pair that is file descriptor childSocket of the child. The end of it is the child's end.

// ChildCommand is the hidden command of the binary that runs ChildMain.
const ChildCommand = "bgp-speaker"

// childSocket is the child's end of the socket pair.
const childSocket = 3

// request is what the daemon asks of its child.
type request struct {
	ID         uint64
	Method     string
	Speaker    *peering.Speaker `json:",omitempty"`
	Address    netip.Addr       `json:",omitzero"`
	Advertised bool             `json:",omitempty"`
}

// response answers the request of the same ID. ID 0 is no answer: learned routes or sessions have changed.
type response struct {
	ID       uint64
	Error    string    `json:",omitempty"`
	Changes  []string  `json:",omitempty"`
	Sessions []Session `json:",omitempty"`
	Details  []Detail  `json:",omitempty"`
	Routes   []Route   `json:",omitempty"`
	Failure  string    `json:",omitempty"`
}

// The methods.
const (
	methodApply      = "apply"
	methodSessions   = "sessions"
	methodReceived   = "received"
	methodAdvertised = "advertised"
)

// ChildMain is the child: it obeys until the daemon closes the socket, and then ends without a word to the peers. restarting is as in Options.
func ChildMain(log *zap.Logger, restarting bool) error {
	socket := os.NewFile(childSocket, "the daemon")
	if socket == nil {
		return errors.New("weftd starts this command; it is of no use by hand")
	}
	return obey(socket, log, restarting)
}

func obey(conn io.ReadWriter, log *zap.Logger, restarting bool) error {
	var writing sync.Mutex
	out := json.NewEncoder(conn)
	send := func(r *response) {
		writing.Lock()
		defer writing.Unlock()
		_ = out.Encode(r) // a daemon that is gone is noticed where it is read
	}
	var s *Server
	s = New(Options{Log: log, Restarting: restarting, OnChange: func() { send(&response{Routes: s.Routes(), Failure: s.Failure()}) }})
	in := json.NewDecoder(bufio.NewReader(conn))
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			s.Close()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("listening to weftd: %w", err)
		}
		if r.Method == methodApply { // in their order
			send(s.answer(&r))
			continue
		}
		go func() { send(s.answer(&r)) }()
	}
}

func (s *Server) answer(r *request) *response {
	ctx := context.Background()
	out := &response{ID: r.ID}
	var err error
	switch r.Method {
	case methodApply:
		out.Changes, err = s.Apply(ctx, *r.Speaker)
	case methodSessions:
		out.Sessions, err = s.Sessions(ctx, r.Advertised)
	case methodReceived:
		out.Details, err = s.Received(ctx, r.Address)
	case methodAdvertised:
		out.Details, err = s.Advertised(ctx, r.Address)
	default:
		err = fmt.Errorf("unknown method %q", r.Method)
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}
