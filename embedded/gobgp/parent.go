package gobgp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/peering"
)

// Speaker is the daemon's end of the speaker in a process of its own. There is no process until something is applied that has neighbours.
type Speaker struct {
	options SpeakerOptions

	applying sync.Mutex // one Apply or Close at a time

	mu     sync.Mutex
	child  *child
	starts int
	// failure says why the last child ended, at ended; empty while one runs or none is wanted.
	failure string
	ended   time.Time
	routes  []Route
	closed  bool
}

// SpeakerOptions are for the whole life of a Speaker.
type SpeakerOptions struct {
	Options
	// Start replaces the start of the child in tests.
	Start func(args []string, socket *os.File) (*os.Process, error)
	// Args are further arguments of the child, for its log.
	Args []string
	// Patience is how long the child may take for an answer before it counts as stuck and is ended; 2 minutes if 0.
	Patience time.Duration
}

// child is one process.
type child struct {
	conn    net.Conn
	process *os.Process
	out     *json.Encoder
	gone    chan struct{} // closed when it has ended

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan *response
}

// NewSpeaker returns a speaker that is off.
func NewSpeaker(o SpeakerOptions) *Speaker {
	if o.Start == nil {
		o.Start = startChild
	}
	if o.OnChange == nil {
		o.OnChange = func() {}
	}
	if o.Patience == 0 {
		o.Patience = 2 * time.Minute
	}
	return &Speaker{options: o}
}

// startChild runs this very binary, also when the file was replaced since.
func startChild(args []string, socket *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return os.StartProcess("/proc/self/exe", append([]string{"weft", ChildCommand}, args...), &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{null, null, os.Stderr, socket},
	})
}

// crashPause is the shortest time between the end of a child and the next one.
const crashPause = time.Second

// Apply brings the speaker to what is wanted, as Server.Apply does, and starts or ends its process for that.
func (p *Speaker) Apply(ctx context.Context, want peering.Speaker) (changes []string, err error) {
	p.applying.Lock()
	defer p.applying.Unlock()
	c := p.current()
	if c == nil && len(want.Neighbours) == 0 {
		p.mu.Lock()
		p.failure = ""
		p.mu.Unlock()
		return nil, nil
	}
	if c == nil {
		if c, err = p.start(); err != nil {
			return nil, err
		}
		changes = append(changes, fmt.Sprintf("the process of the speaker was started (pid %d)", c.process.Pid))
	}
	r, err := p.ask(ctx, c, request{Method: methodApply, Speaker: &want})
	if err != nil {
		return changes, err
	}
	changes = append(changes, r.Changes...)
	if r.Error != "" {
		return changes, errors.New(r.Error)
	}
	if len(want.Neighbours) == 0 {
		p.end(c)
		changes = append(changes, "the process of the speaker was ended")
	}
	return changes, nil
}

func (p *Speaker) current() *child {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child
}

// start runs a child. One that follows another of this boot tells the peers that it was restarted.
func (p *Speaker) start() (*child, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the daemon is stopping")
	}
	if left := crashPause - time.Since(p.ended); p.failure != "" && left > 0 {
		return nil, fmt.Errorf("the BGP speaker has failed (%s) and starts again in %s", p.failure, left.Round(time.Millisecond))
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket for the BGP speaker: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "the speaker"), os.NewFile(uintptr(fds[1]), "the daemon")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, fmt.Errorf("making a socket for the BGP speaker: %w", err)
	}
	args := slices.Clone(p.options.Args)
	if p.options.Restarting || p.failure != "" {
		args = append(args, "--restarting")
	}
	process, err := p.options.Start(args, theirs)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("starting the process of the BGP speaker: %w", err)
	}
	c := &child{conn: conn, process: process, out: json.NewEncoder(conn), gone: make(chan struct{}), waiting: map[uint64]chan *response{}}
	p.child, p.failure = c, ""
	p.starts++
	go p.listen(c)
	return c, nil
}

// listen takes what a child says until it ends.
func (p *Speaker) listen(c *child) {
	in := json.NewDecoder(bufio.NewReader(c.conn))
	for {
		r := &response{}
		if in.Decode(r) != nil {
			break
		}
		if r.ID != 0 {
			c.deliver(r)
			continue
		}
		p.mu.Lock()
		p.routes = r.Routes
		p.mu.Unlock()
		p.options.OnChange()
	}
	_ = c.conn.Close()
	state, err := c.process.Wait()
	p.mu.Lock()
	if p.child == c { // it ended by itself
		p.child, p.ended = nil, time.Now()
		p.failure = fmt.Sprintf("its process ended: %v", state)
		if err != nil {
			p.failure = "its process ended: " + err.Error()
		}
		p.options.Log.Error("the BGP speaker has failed and will be started anew; peers keep this node's routes meanwhile", zap.String("why", p.failure))
	}
	p.mu.Unlock()
	close(c.gone)
	p.options.OnChange()
}

func (c *child) deliver(r *response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer := c.waiting[r.ID]; answer != nil {
		delete(c.waiting, r.ID)
		answer <- r
	}
}

// ask sends a request to a child and waits for the answer, for its end, or for the end of ctx. A child that is stuck is ended, so
// that the next Apply starts another.
func (p *Speaker) ask(ctx context.Context, c *child, r request) (*response, error) {
	answer := make(chan *response, 1)
	stuck := time.NewTimer(p.options.Patience)
	defer stuck.Stop()
	c.mu.Lock()
	c.next++
	r.ID = c.next
	c.waiting[r.ID] = answer
	_ = c.conn.SetWriteDeadline(time.Now().Add(p.options.Patience))
	err := c.out.Encode(r)
	c.mu.Unlock()
	defer c.forget(r.ID)
	if err != nil {
		_ = c.process.Kill() // half a request may be on its way
		return nil, fmt.Errorf("asking the BGP speaker: %w", err)
	}
	select {
	case a := <-answer:
		return a, nil
	case <-c.gone:
		return nil, fmt.Errorf("the BGP speaker has failed: %s", p.Failure())
	case <-stuck.C:
		_ = c.process.Kill()
		return nil, fmt.Errorf("the BGP speaker has not answered for %s: its process is ended and another started", p.options.Patience)
	case <-ctx.Done():
		return nil, fmt.Errorf("asking the BGP speaker: %w", ctx.Err())
	}
}

func (c *child) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// end lets a child go that has no sessions any more, or shall end without a word.
func (p *Speaker) end(c *child) {
	p.mu.Lock()
	p.child = nil
	if !p.closed { // otherwise what was learned is for the next daemon to hold
		p.routes = nil
	}
	p.mu.Unlock()
	_ = c.conn.Close() // it ends when it reads that
	timer := time.NewTimer(stopWait)
	defer timer.Stop()
	select {
	case <-c.gone:
	case <-timer.C:
		_ = c.process.Kill()
		<-c.gone
	}
}

// Close ends the process without a word to the peers, which keep our routes for the restart time.
func (p *Speaker) Close() {
	p.mu.Lock()
	p.closed = true
	c := p.child
	p.mu.Unlock()
	if c != nil {
		p.end(c)
	}
}

// Failure says why there is no process although there should be; empty when all is well.
func (p *Speaker) Failure() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure
}

// Starts counts the processes so far.
func (p *Speaker) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

// PID is the process that runs now, or 0.
func (p *Speaker) PID() int {
	if c := p.current(); c != nil {
		return c.process.Pid
	}
	return 0
}

// Routes returns the best routes that neighbours told, sorted, as last heard.
func (p *Speaker) Routes() []Route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.routes
}

// query asks a child that runs.
func (p *Speaker) query(ctx context.Context, r request) (*response, error) {
	c := p.current()
	if c == nil {
		if why := p.Failure(); why != "" {
			return nil, fmt.Errorf("the BGP speaker has failed: %s", why)
		}
		return nil, errOff
	}
	answer, err := p.ask(ctx, c, r)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	return answer, err
}

// Sessions returns the sessions, as Server.Sessions does.
func (p *Speaker) Sessions(ctx context.Context, advertised bool) ([]Session, error) {
	r, err := p.query(ctx, request{Method: methodSessions, Advertised: advertised})
	if err != nil {
		return nil, err
	}
	return r.Sessions, nil
}

// Received returns what a neighbour has told us, with what the import rules did not take.
func (p *Speaker) Received(ctx context.Context, neighbour netip.Addr) ([]Detail, error) {
	r, err := p.query(ctx, request{Method: methodReceived, Address: neighbour})
	if err != nil {
		return nil, err
	}
	return r.Details, nil
}

// Advertised returns what a neighbour was told.
func (p *Speaker) Advertised(ctx context.Context, neighbour netip.Addr) ([]Detail, error) {
	r, err := p.query(ctx, request{Method: methodAdvertised, Address: neighbour})
	if err != nil {
		return nil, err
	}
	return r.Details, nil
}
