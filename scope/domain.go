package scope

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What every parser of this package refuses to go beyond.
const (
	maxText   = 1024 // bytes of a domain, a scope or a pattern
	maxDepth  = 8    // segments of a domain
	maxKind   = 32   // bytes of a kind
	maxID     = 256  // bytes of an id, decoded
	maxAction = 64   // bytes of an action
	maxSet    = 128  // scopes in a set
)

// ErrSyntax is wrapped by every error about a text or a value that breaks the format or its limits.
// The error says what was wrong and at which byte offset, and quotes a bounded part of the input.
var ErrSyntax = errors.New("scope: invalid syntax")

// A Domain is a place in the social server: a path of kind:id segments, such as group:42/thread:7.
// It is canonical and comparable with ==. The zero Domain is none: it is no domain's parent and no domain's child.
type Domain struct {
	text string
}

// ParseDomain parses a domain such as "group:42/thread:7". Errors wrap [ErrSyntax]; empty text is one.
func ParseDomain(text string) (Domain, error) {
	canonical, f := checkDomain(text, len(text))
	if f != nil {
		return Domain{}, f.in("domain", text)
	}
	if !canonical {
		text = canonicalize(text)
	}
	return Domain{text: text}, nil
}

// MustDomain is [ParseDomain] for texts in the program. It panics on an error, so never give it input.
func MustDomain(text string) Domain {
	d, err := ParseDomain(text)
	if err != nil {
		panic(err)
	}
	return d
}

// Child returns the domain kind:id directly below d; below the zero Domain that is a root. The id is raw: any 1 to
// 256 bytes, encoded here. Errors wrap [ErrSyntax]: a bad kind, an id without a byte or with too many, more than 8
// segments, more than 1024 bytes in all.
func (d Domain) Child(kind, id string) (Domain, error) {
	if f := checkKind(kind, 0, len(kind)); f != nil {
		return Domain{}, f.in("kind", kind)
	}
	if f := checkRaw(id); f != nil {
		return Domain{}, f.in("id", id)
	}
	size := len(kind) + 1 + encodedLen(id)
	if d.text != "" {
		size += len(d.text) + 1
		if strings.Count(d.text, "/")+1 >= maxDepth {
			return Domain{}, faultf(len(d.text), "no child: %d segments are the limit", maxDepth).in("domain", d.text)
		}
	}
	if size > maxText {
		return Domain{}, faultf(len(d.text), "the child would have %d bytes, over the limit of %d", size, maxText).in("domain", d.text)
	}
	b := make([]byte, 0, 128) // on the stack, and enough for nearly all
	if d.text != "" {
		b = append(append(b, d.text...), '/')
	}
	b = append(append(b, kind...), ':')
	return Domain{text: string(appendEncoded(b, id))}, nil
}

// Parent returns the domain that d lies directly in, or the zero Domain if d is a root or zero.
func (d Domain) Parent() Domain {
	return Domain{text: d.text[:max(0, strings.LastIndexByte(d.text, '/'))]}
}

// Root returns the first segment of d, or the zero Domain if d is zero.
func (d Domain) Root() Domain {
	if i := strings.IndexByte(d.text, '/'); i >= 0 {
		return Domain{text: d.text[:i]}
	}
	return d
}

// Kind returns the kind of the last segment: "thread" of group:42/thread:7. It is empty for the zero Domain.
func (d Domain) Kind() string {
	kind, _ := d.last()
	return kind
}

// ID returns the decoded id of the last segment: "a/b" of group:a%2Fb. It may hold any byte.
// It is empty for the zero Domain only.
func (d Domain) ID() string {
	_, id := d.last()
	if strings.IndexByte(id, '%') < 0 {
		return id
	}
	return decode(id)
}

// last returns kind and encoded id of the last segment.
func (d Domain) last() (kind, id string) {
	kind, id, _ = strings.Cut(d.text[strings.LastIndexByte(d.text, '/')+1:], ":")
	return kind, id
}

// Ancestor returns the nearest of d and the domains above it that is of the kind, and whether there is one.
func (d Domain) Ancestor(kind string) (Domain, bool) {
	for ; d.text != ""; d = d.Parent() {
		if d.Kind() == kind {
			return d, true
		}
	}
	return Domain{}, false
}

// Covers reports whether other is d or lies below it. The zero Domain covers nothing and nothing covers it.
func (d Domain) Covers(other Domain) bool {
	return covers(d.text, other.text)
}

// covers works on canonical texts, so that equal bytes are equal segments.
func covers(above, below string) bool {
	return above != "" && strings.HasPrefix(below, above) && (len(below) == len(above) || below[len(above)] == '/')
}

// IsZero reports whether d is the zero Domain: none.
func (d Domain) IsZero() bool { return d.text == "" }

// String returns the canonical text, empty for the zero Domain.
func (d Domain) String() string { return d.text }

// MarshalText returns the canonical text, empty for the zero Domain. It never fails.
func (d Domain) MarshalText() ([]byte, error) { return []byte(d.text), nil }

// UnmarshalText is [ParseDomain] into d; empty text gives the zero Domain. On an error d stays as it was.
func (d *Domain) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Domain{}
		return nil
	}
	parsed, err := ParseDomain(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// A fault is what is wrong with a text, and where. Parsers return it, so that only a failure pays for its words.
type fault struct {
	off int
	why string
}

func faultf(off int, format string, args ...any) *fault {
	return &fault{off: off, why: fmt.Sprintf(format, args...)}
}

// in makes the error, with the part of the text around the fault.
func (f *fault) in(what, text string) error {
	return fmt.Errorf("%w: %s %s: at offset %d: %s", ErrSyntax, what, excerpt(text, f.off), f.off, f.why)
}

// excerpt quotes a text, or up to 64 bytes of it around an offset: an error must not be as long as its cause.
func excerpt(text string, off int) string {
	const side = 32
	from, to, before, after := 0, len(text), "", ""
	if len(text) > 2*side {
		from = min(max(0, off-side), len(text)-2*side)
		to = from + 2*side
		if from > 0 {
			before = "…"
		}
		if to < len(text) {
			after = "…"
		}
	}
	return before + strconv.Quote(text[from:to]) + after
}

// char names one byte of the input.
func char(c byte) string {
	if c > ' ' && c < 0x7f {
		return strconv.QuoteRune(rune(c))
	}
	return fmt.Sprintf("byte 0x%02X", c)
}

// checkDomain checks text[:end] and reports whether it is canonical already.
func checkDomain(text string, end int) (canonical bool, f *fault) {
	canonical = true
	f = eachSegment(text, end, func(from, to int) *fault {
		plain, f := checkID(text, from, to)
		canonical = canonical && plain
		return f
	})
	return canonical, f
}

// eachSegment checks everything in text[:end] but the ids, which it hands on by their bounds.
func eachSegment(text string, end int, id func(from, to int) *fault) *fault {
	if len(text) > maxText {
		return faultf(maxText, "%d bytes, over the limit of %d", len(text), maxText)
	}
	for from, depth := 0, 1; ; depth++ {
		if depth > maxDepth {
			return faultf(from, "more than %d segments", maxDepth)
		}
		to := end
		if i := strings.IndexByte(text[from:end], '/'); i >= 0 {
			to = from + i
		}
		if from == to {
			return faultf(from, "a segment kind:id is missing")
		}
		colon := strings.IndexByte(text[from:to], ':')
		if colon < 0 {
			return faultf(to, "a segment is kind:id, and the \":\" is missing")
		}
		if f := checkKind(text, from, from+colon); f != nil {
			return f
		}
		if f := id(from+colon+1, to); f != nil {
			return f
		}
		if to == end {
			return nil
		}
		from = to + 1
	}
}

func checkKind(text string, from, to int) *fault {
	switch {
	case from == to:
		return faultf(from, "the kind is empty")
	case !isLower(text[from]):
		return faultf(from, "a kind begins with a-z, not with %s", char(text[from]))
	}
	for i := from + 1; i < to; i++ {
		if !isWord(text[i]) {
			return faultf(i, "a kind has a-z, 0-9, \"_\" and \"-\", not %s", char(text[i]))
		}
	}
	if to-from > maxKind {
		return faultf(from+maxKind, "the kind has %d bytes, over the limit of %d", to-from, maxKind)
	}
	return nil
}

// checkID checks an encoded id and reports whether it is canonical.
func checkID(text string, from, to int) (canonical bool, f *fault) {
	canonical = true
	n := 0
	for i := from; i < to; n++ {
		c := text[i]
		switch {
		case isUnreserved(c):
			i++
		case c != '%':
			return false, faultf(i, "an id has %s as %%%02X", char(c), c)
		case to-i < 3 || unhex(text[i+1]) < 0 || unhex(text[i+2]) < 0:
			return false, faultf(i, "\"%%\" wants two hexadecimal digits")
		default:
			// RFC 3986 §6.2.2: upper-case hex, and no escape of what needs none.
			if text[i+1] >= 'a' || text[i+2] >= 'a' || isUnreserved(byte(unhex(text[i+1])<<4|unhex(text[i+2]))) {
				canonical = false
			}
			i += 3
		}
	}
	if n == 0 {
		return false, faultf(from, "the id is empty")
	}
	if n > maxID {
		return false, faultf(from, "the id has %d bytes, over the limit of %d", n, maxID)
	}
	return canonical, nil
}

// checkRaw checks an id before it is encoded.
func checkRaw(id string) *fault {
	switch {
	case id == "":
		return faultf(0, "the id is empty")
	case len(id) > maxID:
		return faultf(maxID, "the id has %d bytes, over the limit of %d", len(id), maxID)
	}
	return nil
}

const upperHex = "0123456789ABCDEF"

// canonicalize rewrites the escapes of a checked text. "%" occurs nowhere but in ids.
func canonicalize(text string) string {
	b := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		c = byte(unhex(text[i+1])<<4 | unhex(text[i+2]))
		i += 2
		if isUnreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

func decode(id string) string {
	b := make([]byte, 0, len(id))
	for i := 0; i < len(id); i++ {
		c := id[i]
		if c == '%' {
			c = byte(unhex(id[i+1])<<4 | unhex(id[i+2]))
			i += 2
		}
		b = append(b, c)
	}
	return string(b)
}

func appendEncoded(b []byte, id string) []byte {
	for i := 0; i < len(id); i++ {
		c := id[i]
		if isUnreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

func encodedLen(id string) int {
	n := len(id)
	for i := 0; i < len(id); i++ {
		if !isUnreserved(id[i]) {
			n += 2
		}
	}
	return n
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isWord(c byte) bool  { return isLower(c) || isDigit(c) || c == '_' || c == '-' }

// isUnreserved is the set of RFC 3986 §2.3.
func isUnreserved(c byte) bool {
	return isWord(c) || c >= 'A' && c <= 'Z' || c == '.' || c == '~'
}
