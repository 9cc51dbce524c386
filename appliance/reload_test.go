package appliance

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// TestPodMTU: Pods that could not be brought to a new MTU are tried again, from the one they have.
func TestPodMTU(t *testing.T) {
	var p podMTU
	var calls []string
	for _, step := range []struct {
		now int
		err error
	}{{1500, nil}, {1500, nil}, {1450, errors.New("busy")}, {1450, errors.New("busy")}, {1450, nil}, {1450, nil}} {
		err := p.follow(step.now, func(before, now int) error {
			calls = append(calls, fmt.Sprint(before, " to ", now))
			return step.err
		})
		if !errors.Is(err, step.err) {
			t.Errorf("to %d: error %v, want %v", step.now, err, step.err)
		}
	}
	want := []string{"0 to 1500", "1500 to 1450", "1500 to 1450", "1500 to 1450"}
	if !slices.Equal(calls, want) {
		t.Errorf("Pods were brought from %q, want %q", calls, want)
	}
}
