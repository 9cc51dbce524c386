package ruleset

import (
	"encoding/binary"
	"math/bits"
)

// jhash is the kernel's hash of bytes (include/linux/jhash.h, Bob Jenkins' lookup3), so that the tracer foretells who gets a client.
func jhash(b []byte, seed uint32) uint32 {
	x := 0xdeadbeef + uint32(len(b)) + seed
	s := jhashState{x, x, x}
	for len(b) > 12 {
		s.add(b)
		s.mix()
		b = b[12:]
	}
	if len(b) == 0 {
		return s.c
	}
	var last [12]byte
	copy(last[:], b)
	// The rest is read byte by byte, from the low end of each word.
	s.a += binary.LittleEndian.Uint32(last[0:])
	s.b += binary.LittleEndian.Uint32(last[4:])
	s.c += binary.LittleEndian.Uint32(last[8:])
	s.final()
	return s.c
}

type jhashState struct{ a, b, c uint32 }

func (s *jhashState) add(b []byte) {
	s.a += binary.NativeEndian.Uint32(b[0:])
	s.b += binary.NativeEndian.Uint32(b[4:])
	s.c += binary.NativeEndian.Uint32(b[8:])
}

func (s *jhashState) mix() {
	s.a, s.c = (s.a-s.c)^bits.RotateLeft32(s.c, 4), s.c+s.b
	s.b, s.a = (s.b-s.a)^bits.RotateLeft32(s.a, 6), s.a+s.c
	s.c, s.b = (s.c-s.b)^bits.RotateLeft32(s.b, 8), s.b+s.a
	s.a, s.c = (s.a-s.c)^bits.RotateLeft32(s.c, 16), s.c+s.b
	s.b, s.a = (s.b-s.a)^bits.RotateLeft32(s.a, 19), s.a+s.c
	s.c, s.b = (s.c-s.b)^bits.RotateLeft32(s.b, 4), s.b+s.a
}

func (s *jhashState) final() {
	s.c = (s.c ^ s.b) - bits.RotateLeft32(s.b, 14)
	s.a = (s.a ^ s.c) - bits.RotateLeft32(s.c, 11)
	s.b = (s.b ^ s.a) - bits.RotateLeft32(s.a, 25)
	s.c = (s.c ^ s.b) - bits.RotateLeft32(s.b, 16)
	s.a = (s.a ^ s.c) - bits.RotateLeft32(s.c, 4)
	s.b = (s.b ^ s.a) - bits.RotateLeft32(s.a, 14)
	s.c = (s.c ^ s.b) - bits.RotateLeft32(s.b, 24)
}
