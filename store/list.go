package store

import "slices"

// maxChunk bounds what an insertion or a removal moves: at most this many elements.
const maxChunk = 256

// A list keeps elements in order, in chunks, so that no step on it gets long however many there are.
// Nearly all lists are short: one chunk, a plain slice. The zero list is empty.
type list[T any] struct {
	first []T    // empty only if the list is
	more  *[][]T // the chunks after it, none of them empty
}

// A spot is a place in a list; it is good until the list changes.
type spot struct{ chunk, i int }

func (l *list[T]) rest() [][]T {
	if l.more == nil {
		return nil
	}
	return *l.more
}

func (l *list[T]) setRest(rest [][]T) {
	switch {
	case len(rest) == 0:
		l.more = nil
	case l.more == nil:
		l.more = &rest
	default:
		*l.more = rest
	}
}

func (l *list[T]) chunk(i int) *[]T {
	if i == 0 {
		return &l.first
	}
	return &(*l.more)[i-1]
}

func (l *list[T]) empty() bool { return len(l.first) == 0 }

func (l *list[T]) last() (v T, ok bool) {
	c := l.first
	if l.more != nil {
		c = (*l.more)[len(*l.more)-1]
	}
	if len(c) == 0 {
		return v, false
	}
	return c[len(c)-1], true
}

// search returns the spot of the first element that is past a border, or the end. past is false up to some element,
// and true from there on.
func (l *list[T]) search(past func(T) bool) spot {
	lo, hi := 0, len(l.rest())
	// What is new usually belongs at the end: ledger entries, expiries.
	if v, ok := l.last(); !ok || !past(v) {
		return spot{hi, len(*l.chunk(hi))}
	}
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if c := *l.chunk(mid); past(c[len(c)-1]) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	c := *l.chunk(lo)
	i, j := 0, len(c)-1
	for i < j {
		mid := int(uint(i+j) >> 1)
		if past(c[mid]) {
			j = mid
		} else {
			i = mid + 1
		}
	}
	return spot{lo, i}
}

// ref points to the element at a spot; nil at either end.
func (l *list[T]) ref(s spot) *T {
	if s.chunk < 0 || s.chunk > len(l.rest()) {
		return nil
	}
	if c := *l.chunk(s.chunk); s.i < len(c) {
		return &c[s.i]
	}
	return nil
}

// at returns the element at a spot; false at either end.
func (l *list[T]) at(s spot) (v T, ok bool) {
	if p := l.ref(s); p != nil {
		return *p, true
	}
	return v, false
}

func (l *list[T]) next(s spot) spot {
	if s.i++; s.i >= len(*l.chunk(s.chunk)) && s.chunk < len(l.rest()) {
		return spot{s.chunk + 1, 0}
	}
	return s
}

func (l *list[T]) prev(s spot) spot {
	switch {
	case s.i > 0:
		return spot{s.chunk, s.i - 1}
	case s.chunk == 0:
		return spot{-1, 0}
	}
	return spot{s.chunk - 1, len(*l.chunk(s.chunk - 1)) - 1}
}

// insert puts v before the element at s, which came from search.
func (l *list[T]) insert(s spot, v T) {
	c := l.chunk(s.chunk)
	if len(*c) == maxChunk {
		half := maxChunk / 2
		if s.chunk == len(l.rest()) && s.i == maxChunk {
			half = maxChunk // a list that grows at its end leaves full chunks behind
		}
		upper := append(make([]T, 0, maxChunk), (*c)[half:]...)
		clear((*c)[half:])
		*c = (*c)[:half]
		l.setRest(slices.Insert(l.rest(), s.chunk, upper))
		if s.i >= half {
			s = spot{s.chunk + 1, s.i - half}
		}
		c = l.chunk(s.chunk)
	}
	var zero T
	*c = append(*c, zero)
	copy((*c)[s.i+1:], (*c)[s.i:])
	(*c)[s.i] = v
}

// remove takes out the element at s.
func (l *list[T]) remove(s spot) {
	c := l.chunk(s.chunk)
	if len(*c) > 1 {
		*c = slices.Delete(*c, s.i, s.i+1)
		if n := len(*c); n > 4 && n <= cap(*c)/4 {
			*c = append(make([]T, 0, 2*n), *c...)
		}
		return
	}
	switch {
	case l.more == nil:
		l.first = nil
	case s.chunk == 0:
		l.first = (*l.more)[0]
		l.setRest(slices.Delete(*l.more, 0, 1))
	default:
		l.setRest(slices.Delete(*l.more, s.chunk-1, s.chunk))
	}
}
