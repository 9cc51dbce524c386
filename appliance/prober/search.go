package prober

// maxSizes bounds the probes of one search; it is enough to find one size among 4,096.
const maxSizes = 12

// searchMTU returns the largest size in bytes that passes, between low, which does, and high, which does not for the reason
// given. What a router says is tried first and not believed without a probe. With the bound reached, it is the largest size
// that was seen to pass.
func searchMTU(low, high int, reason outcome, try func(size int) outcome) measured {
	hint := reason.mtu
	for range maxSizes {
		if high-low <= 1 {
			break
		}
		size := low + (high-low)/2
		switch {
		case low < hint && hint < high:
			size = hint
		case low == hint: // the router was right if nothing larger passes
			size = hint + 1
		}
		o := try(size)
		if o.fate == passed {
			low = size
			continue
		}
		high = size
		// A second router may carry less than the first.
		if o.mtu != 0 && o.mtu < high {
			hint = o.mtu
		}
		if o.fate == tooBig {
			reason = o
		}
	}
	return measured{low, reason}
}
