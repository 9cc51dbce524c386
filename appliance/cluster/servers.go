package cluster

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

const (
	// defaultPort is where kubeadm and k3s servers listen.
	defaultPort = "6443"
	// serviceName is a name that the certificate of each API server has, because Pods call it so.
	serviceName = "kubernetes.default.svc"
)

// server is one address at which the API may answer.
type server struct {
	url url.URL // scheme and host with port
	// names are what the certificate may be valid for, in the order in which they are tried; "" means the host of the URL.
	names []string

	name      int
	transport http.RoundTripper
}

func (s *server) String() string { return s.url.Host }

// parseServer reads https://host:port, or host with or without port. The path must be empty.
func parseServer(text string) (url.URL, error) {
	full := text
	if !strings.Contains(text, "://") {
		if _, _, err := net.SplitHostPort(text); err != nil {
			full = net.JoinHostPort(strings.Trim(text, "[]"), defaultPort)
		}
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
		return url.URL{}, fmt.Errorf("API server %q is not of the form https://host:port", text)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
	}
	return url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// servers sends each request to the server that answered last, and to the others in turn when that one does not.
type servers struct {
	// dial makes the transport to a server that shows a certificate for the given name.
	dial     func(u url.URL, tlsName string) (http.RoundTripper, error)
	answered func(server string)

	mu      sync.Mutex
	list    []*server
	current int
}

// set replaces the list. Servers that stay keep their connections, and the current one stays current.
func (s *servers) set(list []*server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now *server
	if len(s.list) > 0 {
		now = s.list[s.current]
	}
	for i, n := range list {
		for _, old := range s.list {
			if old.url == n.url && slices.Equal(old.names, n.names) {
				list[i] = old
			}
		}
	}
	s.list = list
	s.current = max(0, slices.Index(list, now))
}

// RoundTrip implements http.RoundTripper.
func (s *servers) RoundTrip(req *http.Request) (*http.Response, error) {
	tries := 1
	if req.Method == http.MethodGet { // others may have had their effect before the error
		tries = s.count()
	}
	var failed error
	names := 0
	for {
		target, transport, name, err := s.pick()
		if err != nil {
			return nil, errors.Join(failed, err)
		}
		res, err := transport.RoundTrip(address(req, target))
		if err == nil {
			s.note(target, res.StatusCode)
			return res, nil
		}
		if req.Context().Err() != nil {
			return nil, err
		}
		var wrongName x509.HostnameError
		if names++; errors.As(err, &wrongName) && names <= len(target.names) && s.nextName(target, name) {
			continue
		}
		names = 0
		s.next(target)
		failed = join(failed, fmt.Errorf("API server %s: %w", target, err))
		if tries--; tries <= 0 {
			return nil, failed
		}
	}
}

// join puts two errors in one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// address returns a copy of the request for that server.
func address(req *http.Request, to *server) *http.Request {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host, out.Host = to.url.Scheme, to.url.Host, ""
	return out
}

func (s *servers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// pick returns the current server, its transport, and which of the names that expects in the certificate.
func (s *servers) pick() (*server, http.RoundTripper, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return nil, nil, 0, errors.New("no API server is known")
	}
	target := s.list[s.current]
	if target.transport == nil {
		var err error
		if target.transport, err = s.dial(target.url, target.names[target.name]); err != nil {
			return nil, nil, 0, err
		}
	}
	return target, target.transport, target.name, nil
}

// note looks at the answer of a server. One that says that it is going away or has lost its own backend is left for the next.
func (s *servers) note(target *server, code int) {
	switch code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		s.next(target)
	default:
		s.answered(target.String())
	}
}

// next makes the server after target current, unless another request has done so.
func (s *servers) next(target *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current < len(s.list) && s.list[s.current] == target {
		s.current = (s.current + 1) % len(s.list)
	}
}

// nextName makes the server try the name after the one that failed in its certificate, unless another request has done so. It returns
// false after the last one, and starts again.
func (s *servers) nextName(target *server, failed int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if target.name != failed {
		return true
	}
	target.transport = nil
	target.name = (target.name + 1) % len(target.names)
	return target.name != 0
}
