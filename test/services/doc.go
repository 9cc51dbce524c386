// Package services tests Services against a plain-Go oracle, with the tracer and with real packets.
package services
