package e2e

import (
	"fmt"
	"os"
	"strings"
	"time"
)

const logTail = 25 // lines

// wait calls done until it returns nil. The error names what was waited for, the last reason of done and, for each
// watched process, the end of its log. A watched process that ends is an error at once.
func wait(what string, limit time.Duration, watched []*process, done func() error) error {
	deadline := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		reason := done()
		if reason == nil {
			return nil
		}
		for _, p := range watched {
			select {
			case <-p.ended:
				return fmt.Errorf("waiting for %s: %s has ended%s", what, p.name, p.tail())
			default:
			}
		}
		select {
		case <-deadline:
			err := fmt.Errorf("waiting %s for %s: %w", limit, what, reason)
			for _, p := range watched {
				err = fmt.Errorf("%w%s", err, p.tail())
			}
			return err
		case <-tick.C:
		}
	}
}

// tail returns the end of the process's log, with a headline.
func (p *process) tail() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return "\n" + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	lines = lines[max(0, len(lines)-logTail):]
	return fmt.Sprintf("\n--- end of %s\n%s", p.log, strings.Join(lines, "\n"))
}
