package policy

import "slices"

// Tightened reports whether something that could pass before cannot pass now: then flows that run must be judged again. An
// address that went has no flows to speak of, and one that comes has those of who had it before.
func Tightened(old, now *Filters) bool {
	if old == nil {
		return false
	}
	for addr, f := range now.Own {
		if was, ok := old.Attached[addr]; !ok || was != f.Pod {
			continue
		}
		before := old.Own[addr]
		if before == f {
			continue
		}
		for d, allowed := range f.Directions {
			var had *Allowed
			if before != nil {
				had = before.Directions[d]
			}
			if allowed.lost(had) {
				return true
			}
		}
	}
	ids, all := now.left.since(old.left)
	if !all {
		return true
	}
	for id := range ids {
		for _, f := range now.Own {
			for _, a := range f.Directions {
				if a != nil && a.names(id) { // or it was named before, and the loss of it was seen above
					return true
				}
			}
		}
	}
	return false
}

// names reports whether peers with that identity are allowed anything by it.
func (a *Allowed) names(id ID) bool {
	return slices.Contains(a.Any, id) || slices.ContainsFunc(a.Ports, func(p PeerPorts) bool { return p.Peer == id })
}

// left is a list of identities that only grows. A copy of it stays as it was.
type left struct {
	before int // how many are forgotten
	ids    []ID
}

// mostLeft bounds what is remembered.
const mostLeft = 4096

func (l *left) note(id ID) {
	if len(l.ids) >= mostLeft {
		l.before, l.ids = l.before+len(l.ids), nil
	}
	l.ids = append(l.ids, id)
}

// forget makes what any copy knows too old to be compared.
func (l *left) forget() { l.before, l.ids = l.before+len(l.ids)+1, nil }

// since returns what was added after an older copy; ok is false when that is not known any more.
func (l *left) since(old left) (ids map[ID]bool, ok bool) {
	from := old.before + len(old.ids) - l.before
	if from < 0 || from > len(l.ids) {
		return nil, false
	}
	ids = map[ID]bool{}
	for _, id := range l.ids[from:] {
		ids[id] = true
	}
	return ids, true
}

// lost reports whether before allowed more. Nothing isolated the direction where before is nil.
func (a *Allowed) lost(before *Allowed) bool {
	switch {
	case a == nil || a.Audit:
		return false
	case before == nil || before.Audit:
		return true
	case before == a || a.Pods && len(before.Nets) == 0 && len(before.Blocks) == 0:
		return false
	}
	if before.Pods && !a.Pods {
		return true
	}
	if !a.Pods && (!subset(before.PodPorts, a.PodPorts) || !subset(before.Any, a.Any)) {
		return true
	}
	for _, p := range before.Ports {
		if !a.Pods && !slices.Contains(a.Any, p.Peer) && !slices.Contains(a.Ports, p) && !p.Ports.within(a.PodPorts) {
			return true
		}
	}
	return !subset(before.Nets, a.Nets) || !subset(before.Blocks, a.Blocks)
}

// subset reports whether b has all of a. Both are short or nearly the same.
func subset[T comparable](a, b []T) bool {
	if slices.Equal(a, b) {
		return true
	}
	has := make(map[T]bool, len(b))
	for _, x := range b {
		has[x] = true
	}
	for _, x := range a {
		if !has[x] {
			return false
		}
	}
	return true
}
