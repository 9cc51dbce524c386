package probe

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	mathrand "math/rand/v2"
	"net/netip"
)

// A probe and its reply begin with the same header; numbers are big-endian:
//
//	 0  magic    "weft"
//	 4  version  1
//	 5  kind     1 probe, 2 reply
//	 6  bytes    reply: how many bytes of UDP payload arrived
//	 8  sequence counts the probes of one process, for whoever reads a packet dump
//	12  checksum reply: CRC-32 (IEEE) of the UDP payload that arrived
//	16  nonce    chosen by the sender; only who saw the probe can repeat it
//	32  padding  probe: noise, so that nothing on the way compresses it; a reply has none
const (
	version    = 1
	kindProbe  = 1
	kindReply  = 2
	headerSize = 32
)

var magic = []byte("weft")

// The headers below the probe: IP without options and UDP.
const (
	headers4 = 20 + 8
	headers6 = 40 + 8
)

// maxSize is the largest IP packet, in bytes; an IPv6 jumbogram is not one of ours.
const maxSize = 65535

// nonce ties a reply to its probe. Zero is not a nonce.
type nonce [16]byte

// MinSize returns the size in bytes of the smallest probe to an address: IP and UDP headers, and our own.
func MinSize(to netip.Addr) int { return headers(to) + headerSize }

func headers(to netip.Addr) int {
	if to.Unmap().Is4() {
		return headers4
	}
	return headers6
}

// newProbe returns a UDP payload of size bytes and the nonce in it.
func newProbe(size int, sequence uint32) ([]byte, nonce) {
	// The payload is noise from a fast generator, seeded with what nobody can guess; the nonce has a seed of its own, so that
	// the padding tells nothing about it.
	var seed [32]byte
	var n nonce
	rand.Read(seed[:]) // never fails
	rand.Read(n[:])
	p := make([]byte, size)
	_, _ = mathrand.NewChaCha8(seed).Read(p[headerSize:]) // never fails
	putHeader(p, kindProbe, sequence, n)
	return p, n
}

func putHeader(p []byte, kind byte, sequence uint32, n nonce) {
	copy(p, magic)
	p[4], p[5] = version, kind
	binary.BigEndian.PutUint32(p[8:], sequence)
	copy(p[16:], n[:])
}

// newReply writes the answer to a probe into out, which has room for a header. It reports false for what is not a probe.
// The answer is never longer than the probe.
func newReply(out, p []byte) bool {
	if !wellFormed(p, kindProbe) {
		return false
	}
	putHeader(out, kindReply, binary.BigEndian.Uint32(p[8:]), nonce(p[16:32]))
	binary.BigEndian.PutUint16(out[6:], uint16(len(p)))
	binary.BigEndian.PutUint32(out[12:], crc32.ChecksumIEEE(p))
	return true
}

// parseReply returns how many bytes of payload arrived and their checksum. It reports false for what does not answer the
// probe with that nonce.
func parseReply(p []byte, n nonce) (arrived int, checksum uint32, ok bool) {
	if len(p) != headerSize || !wellFormed(p, kindReply) || nonce(p[16:32]) != n {
		return 0, 0, false
	}
	return int(binary.BigEndian.Uint16(p[6:])), binary.BigEndian.Uint32(p[12:]), true
}

func wellFormed(p []byte, kind byte) bool {
	return len(p) >= headerSize && bytes.HasPrefix(p, magic) && p[4] == version && p[5] == kind && nonce(p[16:32]) != nonce{}
}
