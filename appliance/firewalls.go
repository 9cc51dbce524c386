package appliance

import (
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// firewallsAge is how long an answer about other firewalls is believed.
const firewallsAge = 30 * time.Second

// watchFirewalls looks, after a round, for rules of other programs that may drop what Pods send. Docker's and ufw's do, and
// nothing that weft could write overrules a drop in another table.
func (d *Daemon) watchFirewalls() {
	if time.Since(d.firewallsSeen) < firewallsAge {
		return
	}
	d.firewallsSeen = time.Now()
	found, err := d.kernel.rules.OtherFirewalls()
	if err != nil {
		d.log.Warn("looking for other firewalls", zap.Error(err))
		return
	}
	known := d.firewallWarnings()
	d.firewalls.Store(&found)
	for _, w := range d.firewallWarnings() {
		if !slices.Contains(known, w) {
			d.log.Warn(w)
		}
	}
}

// firewallWarnings says what was found, each with what to do.
func (d *Daemon) firewallWarnings() (out []string) {
	found := d.firewalls.Load()
	if found == nil {
		return nil
	}
	for _, chain := range *found {
		out = append(out, fmt.Sprintf("%s drops forwarded packets that no rule of it accepts, those of Pods too: let the Pod ranges of the cluster "+
			"through there (firewall-cmd --permanent --zone=trusted --add-source=RANGE, ufw route allow from RANGE, iptables -P FORWARD ACCEPT)", chain))
	}
	return out
}
