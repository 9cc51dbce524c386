package cluster

import (
	"crypto/x509"
	"net/http"
	"net/url"
	"sync"
	"testing"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestManyRequestsOneName: requests that fail at the same moment because of the name in the certificate try the next one, and do not pass
// over it together.
func TestManyRequestsOneName(t *testing.T) {
	const many = 10
	var first sync.WaitGroup
	first.Add(many)
	s := &servers{
		answered: func(string) {},
		dial: func(_ url.URL, name string) (http.RoundTripper, error) {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				switch name {
				case "right":
					return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
				case "":
					first.Done()
					first.Wait() // so that all of them fail
				}
				return nil, x509.HostnameError{Certificate: &x509.Certificate{}, Host: name}
			}), nil
		},
	}
	s.set([]*server{{url: url.URL{Scheme: "https", Host: "moved"}, names: []string{"", "right", "wrong"}}})
	var requests sync.WaitGroup
	for range many {
		requests.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://configured/api", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if res, err := s.RoundTrip(r); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("a request failed: %v", err)
			}
		})
	}
	requests.Wait()
	if s.list[0].name != 1 {
		t.Errorf("the name is number %d", s.list[0].name)
	}
}
