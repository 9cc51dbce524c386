package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The file format of bbolt (its internal/common: page.go, meta.go, inode.go; internal/freelist). Numbers are in the byte
// order of the machine; every machine that weft is built for is little-endian.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // of leaf and branch pages alike
	metaSize    = 64 // the checksum is in its last 8 bytes
	bucketSize  = 16 // root page 8, sequence 8; an inline page may follow

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10

	leafNested     = 0x01
	noFreelist     = ^uint64(0)
	longFreelist   = 0xFFFF // count of a freelist page whose first entry is the real count
	smallestPage   = 1024
	pageSizeSteps  = 15 // bbolt looks for the second meta page at 1 KiB << 0..14
	firstDataPage  = 2
	maxBucketDepth = 8
)

var order = binary.LittleEndian

type meta struct {
	pageSize             int
	root, freelist, high uint64 // high is the first page that was never used
	txid                 uint64
}

// errOldMeta says that one of the two meta pages is not valid. A crash cannot do that, since a meta page is smaller than a
// disk sector; so the last transaction may be lost. The other meta page still leads to a sound tree.
var errOldMeta = errors.New("one of the two meta pages is damaged: the last write may be missing")

// verify checks the whole structure of a bbolt file without mapping it, each page once. It finds at least what bbolt's
// Tx.Check finds, but cannot fault, loop or take more memory than the file is long. It returns nil, errOldMeta when bbolt can
// safely open the file all the same, or what is wrong.
func verify(file io.ReaderAt, size int64) error {
	if size == 0 {
		return errors.New("the file is empty")
	}
	newest, err := readMetas(file, size)
	if err != nil && !errors.Is(err, errOldMeta) {
		return err
	}
	pages := uint64(size) / uint64(newest.pageSize)
	if newest.high < firstDataPage || newest.high > pages {
		return fmt.Errorf("the file is truncated: %d pages are in use, %d are there", newest.high, pages)
	}
	v := verifier{file: file, pageSize: newest.pageSize, high: newest.high, used: make([]bool, newest.high)}
	v.used[0], v.used[1] = true, true
	if err := v.tree(newest.root, nil, nil, 0); err != nil {
		return err
	}
	if newest.freelist == noFreelist {
		return err
	}
	if err := v.freelist(newest.freelist); err != nil {
		return err
	}
	for id, used := range v.used {
		if !used {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return err
}

// readMetas returns the valid meta page with the highest transaction number, as bbolt does.
func readMetas(file io.ReaderAt, size int64) (meta, error) {
	first, err0 := readMeta(file, 0, 0)
	if err0 == nil {
		second, err1 := readMeta(file, int64(first.pageSize), first.pageSize)
		if err1 != nil {
			return first, errOldMeta
		}
		if second.txid > first.txid {
			return second, nil
		}
		return first, nil
	}
	for step := range pageSizeSteps {
		at := int64(smallestPage) << step
		if at >= size {
			break
		}
		if second, err := readMeta(file, at, int(at)); err == nil {
			return second, errOldMeta
		}
	}
	return meta{}, fmt.Errorf("no valid meta page: %w", err0)
}

// readMeta reads the meta page at an offset. A pageSize other than 0 is the one it must name.
func readMeta(file io.ReaderAt, at int64, pageSize int) (meta, error) {
	buf := make([]byte, pageHeader+metaSize)
	if _, err := file.ReadAt(buf, at); err != nil {
		return meta{}, fmt.Errorf("reading the meta page at %d: %w", at, err)
	}
	b := buf[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSize-8]) // a hash never fails
	if order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[metaSize-8:]) != sum.Sum64() {
		return meta{}, fmt.Errorf("the page at %d is not a meta page of bbolt", at)
	}
	m := meta{
		pageSize: int(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		high:     order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}
	if m.pageSize < smallestPage || m.pageSize&(m.pageSize-1) != 0 || pageSize != 0 && m.pageSize != pageSize {
		return meta{}, fmt.Errorf("the meta page at %d names a page size of %d", at, m.pageSize)
	}
	return m, nil
}

type verifier struct {
	file     io.ReaderAt
	pageSize int
	high     uint64
	used     []bool
}

type page struct {
	id    uint64
	flags uint16
	count int
	data  []byte // with the header; element positions are relative to their own place in it
}

// read returns a page with its overflow and notes that it is used.
func (v *verifier) read(id uint64) (page, error) {
	if id < firstDataPage || id >= v.high {
		return page{}, fmt.Errorf("a reference to page %d leads out of the file", id)
	}
	buf := make([]byte, v.pageSize)
	if err := v.readAt(buf, id); err != nil {
		return page{}, err
	}
	if got := order.Uint64(buf); got != id {
		return page{}, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	overflow := uint64(order.Uint32(buf[12:]))
	if id+overflow >= v.high {
		return page{}, fmt.Errorf("page %d claims %d more pages than the file has", id, id+overflow-v.high+1)
	}
	if err := v.use(id, overflow+1); err != nil {
		return page{}, err
	}
	if overflow > 0 {
		buf = make([]byte, (overflow+1)*uint64(v.pageSize))
		if err := v.readAt(buf, id); err != nil {
			return page{}, err
		}
	}
	return parse(id, buf), nil
}

func (v *verifier) readAt(buf []byte, id uint64) error {
	if _, err := v.file.ReadAt(buf, int64(id)*int64(v.pageSize)); err != nil {
		return fmt.Errorf("reading page %d: %w", id, err)
	}
	return nil
}

func (v *verifier) use(id, n uint64) error {
	for i := id; i < id+n; i++ {
		if v.used[i] {
			return fmt.Errorf("page %d is used twice", i)
		}
		v.used[i] = true
	}
	return nil
}

func parse(id uint64, data []byte) page {
	return page{id: id, flags: order.Uint16(data[8:]), count: int(order.Uint16(data[10:])), data: data}
}

// element returns the fixed part of the element i.
func (p page) element(i int) ([]byte, error) {
	at := pageHeader + i*elementSize
	if at+elementSize > len(p.data) {
		return nil, fmt.Errorf("page %d: element %d is outside of it", p.id, i)
	}
	return p.data[at : at+elementSize], nil
}

// bytes returns what an element points to: n bytes at pos, counted from the start of the element.
func (p page) bytes(i int, pos, n uint64) ([]byte, error) {
	from := uint64(pageHeader+i*elementSize) + pos
	if from+n > uint64(len(p.data)) {
		return nil, fmt.Errorf("page %d: the data of element %d is outside of it", p.id, i)
	}
	return p.data[from : from+n], nil
}

// tree checks the pages below and including root. All keys must be at least low and below high, where those are given.
func (v *verifier) tree(root uint64, low, high []byte, depth int) error {
	p, err := v.read(root)
	if err != nil {
		return err
	}
	switch p.flags {
	case flagBranch:
		return v.branch(p, low, high, depth)
	case flagLeaf:
		return v.leaf(p, low, high, depth)
	}
	return fmt.Errorf("page %d has the unknown type %#x", p.id, p.flags)
}

func (v *verifier) branch(p page, low, high []byte, depth int) error {
	if p.count == 0 {
		return fmt.Errorf("page %d is a branch with nothing below it", p.id)
	}
	keys, children := make([][]byte, p.count), make([]uint64, p.count)
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		if keys[i], err = p.bytes(i, uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))); err != nil {
			return err
		}
		children[i] = order.Uint64(e[8:])
	}
	if err := ordered(p, keys, low, high); err != nil {
		return err
	}
	for i, child := range children {
		limit := high
		if i+1 < len(keys) {
			limit = keys[i+1]
		}
		if err := v.tree(child, keys[i], limit, depth); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) leaf(p page, low, high []byte, depth int) error {
	keys := make([][]byte, p.count)
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		flags, pos := order.Uint32(e), uint64(order.Uint32(e[4:]))
		keySize, valueSize := uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
		if keys[i], err = p.bytes(i, pos, keySize); err != nil {
			return err
		}
		value, err := p.bytes(i, pos+keySize, valueSize)
		if err != nil {
			return err
		}
		switch flags {
		case 0:
		case leafNested:
			if err := v.bucket(p, value, depth+1); err != nil {
				return err
			}
		default:
			return fmt.Errorf("page %d: element %d has the unknown flags %#x", p.id, i, flags)
		}
	}
	return ordered(p, keys, low, high)
}

// bucket checks what is below the value of a bucket's element: a tree of its own, or a leaf page within the value.
func (v *verifier) bucket(p page, value []byte, depth int) error {
	if len(value) < bucketSize || depth > maxBucketDepth {
		return fmt.Errorf("page %d holds a bucket that is too short or too deep", p.id)
	}
	if root := order.Uint64(value); root != 0 {
		return v.tree(root, nil, nil, depth)
	}
	if len(value) < bucketSize+pageHeader {
		return fmt.Errorf("page %d holds a bucket without its page", p.id)
	}
	inline := parse(p.id, value[bucketSize:])
	if inline.flags != flagLeaf {
		return fmt.Errorf("page %d holds a bucket of the unknown type %#x", p.id, inline.flags)
	}
	return v.leaf(inline, nil, nil, depth)
}

func ordered(p page, keys [][]byte, low, high []byte) error {
	for i, key := range keys {
		if i == 0 && bytes.Compare(key, low) < 0 || i > 0 && bytes.Compare(key, keys[i-1]) <= 0 ||
			high != nil && bytes.Compare(key, high) >= 0 {
			return fmt.Errorf("page %d: key %d is out of order", p.id, i)
		}
	}
	return nil
}

func (v *verifier) freelist(id uint64) error {
	p, err := v.read(id)
	if err != nil {
		return err
	}
	if p.flags != flagFreelist {
		return fmt.Errorf("page %d should be the list of free pages, but has the type %#x", p.id, p.flags)
	}
	list, count := p.data[pageHeader:], uint64(p.count)
	if p.count == longFreelist {
		count, list = order.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return fmt.Errorf("page %d: the list of free pages has %d entries, more than fit", p.id, count)
	}
	for i := range count {
		free := order.Uint64(list[i*8:])
		if free < firstDataPage || free >= v.high {
			return fmt.Errorf("page %d: the free page %d is outside of the file", p.id, free)
		}
		if err := v.use(free, 1); err != nil {
			return fmt.Errorf("page %d: in the list of free pages: %w", p.id, err)
		}
	}
	return nil
}
