package scope

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Pattern stands for many domains or scopes. There are two sorts:
//
//   - without an action it selects domains: "*" is any, "group:*" is every group, "group:42/thread:*" is every thread
//     of that group, each with what lies below. [Pattern.Match] asks.
//   - with an action it makes one scope for each set of values: "group:{group}/message.write". [Pattern.Expand] does.
//
// It is canonical and comparable with ==. The zero Pattern matches nothing and expands to nothing.
type Pattern struct {
	text   string
	action int // where the action begins; 0: none
}

// Why a pattern says no: made once, because asking is on the path of every event.
var (
	errMatchNone   = fmt.Errorf("%w: there is no domain", ErrWrongDomain)
	errMatchZero   = fmt.Errorf("%w: the pattern is empty", ErrWrongDomain)
	errMatchAction = fmt.Errorf("%w: the pattern makes scopes and matches no domain", ErrWrongDomain)
	errMatchKind   = fmt.Errorf("%w: not of the kind in the pattern", ErrWrongDomain)
	errMatchID     = fmt.Errorf("%w: not the id in the pattern", ErrWrongDomain)
	errMatchDepth  = fmt.Errorf("%w: above the domains of the pattern", ErrWrongDomain)

	errNotExpandable = errors.New("scope: the pattern has no action, it makes no scope")
)

// ParsePattern parses a pattern. In a pattern without an action an id may be "*", in one with an action it may be
// "{name}"; a name has A-Z, a-z, 0-9 and "_", does not begin with a digit, has at most 64 bytes and occurs once.
// A "*" or a brace that belongs to an id is written %2A, %7B, %7D. Errors wrap [ErrSyntax].
func ParsePattern(text string) (Pattern, error) {
	p, f := parsePattern(text)
	if f != nil {
		return Pattern{}, f.in("pattern", text)
	}
	return p, nil
}

func parsePattern(text string) (Pattern, *fault) {
	if text == "*" {
		return Pattern{text: text}, nil
	}
	end, action := len(text), 0
	if i := strings.LastIndexByte(text, '/'); i > 0 && strings.IndexByte(text[i:], ':') < 0 {
		end, action = i, i+1
	}
	canonical := true
	var names []string
	f := eachSegment(text, end, func(from, to int) *fault {
		id := text[from:to]
		switch {
		case id == "*":
			if action > 0 {
				return faultf(from, "\"*\" makes no scope: use {name} before an action")
			}
		case strings.HasPrefix(id, "{"):
			if action == 0 {
				return faultf(from, "{name} matches no domain: use \"*\", or put an action at the end")
			}
			if f := checkName(text, from, to); f != nil {
				return f
			}
			name := id[1 : len(id)-1]
			if slices.Contains(names, name) {
				return faultf(from, "the name %s occurs twice", name)
			}
			names = append(names, name)
		default:
			plain, f := checkID(text, from, to)
			canonical = canonical && plain
			return f
		}
		return nil
	})
	if f != nil {
		return Pattern{}, f
	}
	if action > 0 {
		if f := checkAction(text, action, len(text)); f != nil {
			return Pattern{}, f
		}
	}
	if !canonical {
		before := len(text)
		text = canonicalize(text)
		if action > 0 {
			action -= before - len(text)
		}
	}
	return Pattern{text: text, action: action}, nil
}

// checkName checks {name} in text[from:to], which begins with "{".
func checkName(text string, from, to int) *fault {
	if text[to-1] != '}' {
		return faultf(to, "an id that begins with \"{\" is all {name}, and the \"}\" is missing")
	}
	from, to = from+1, to-1
	for i := from; i < to; i++ {
		c := text[i]
		if !(isLower(c) || c >= 'A' && c <= 'Z' || c == '_' || i > from && isDigit(c)) {
			return faultf(i, "a name has A-Z, a-z, 0-9 and \"_\" and does not begin with a digit: not %s", char(c))
		}
	}
	switch {
	case from >= to:
		return faultf(from, "the name is empty")
	case to-from > maxAction:
		return faultf(from+maxAction, "the name has %d bytes, over the limit of %d", to-from, maxAction)
	}
	return nil
}

// Match reports whether the pattern selects d: a domain that has the pattern's segments, or lies below one that has.
// Nil is yes; every error wraps [ErrWrongDomain]. It allocates nothing. A zero Domain, a zero Pattern and a pattern
// with an action never match.
func (p Pattern) Match(d Domain) error {
	switch {
	case d.text == "":
		return errMatchNone
	case p.text == "":
		return errMatchZero
	case p.action > 0:
		return errMatchAction
	case p.text == "*":
		return nil
	}
	for want, have := p.text, d.text; ; {
		kind := strings.IndexByte(want, ':') + 1 // with its ":", so that it cannot be half of a longer one
		if !strings.HasPrefix(have, want[:kind]) {
			return errMatchKind
		}
		want, have = want[kind:], have[kind:]
		n := strings.IndexByte(have, '/')
		if n < 0 {
			n = len(have)
		}
		m := strings.IndexByte(want, '/')
		if m < 0 {
			m = len(want)
		}
		if want[:m] != "*" && want[:m] != have[:n] {
			return errMatchID
		}
		switch {
		case m == len(want):
			return nil // what is left of the domain lies below
		case n == len(have):
			return errMatchDepth
		}
		want, have = want[m+1:], have[n+1:]
	}
}

// Action returns the action of a pattern that makes scopes, and is empty for one that matches domains.
func (p Pattern) Action() string {
	if p.action == 0 {
		return ""
	}
	return p.text[p.action:]
}

// Names returns the names in braces, in their order; nil if there are none.
func (p Pattern) Names() []string {
	var names []string
	for rest := p.text; ; {
		_, name, after := cutName(rest)
		if name == "" {
			return names
		}
		names = append(names, name)
		rest = after
	}
}

// cutName splits at the first {name}; without one the name is empty. A checked text has no other braces.
func cutName(text string) (before, name, after string) {
	i := strings.IndexByte(text, '{')
	if i < 0 {
		return text, "", ""
	}
	j := i + strings.IndexByte(text[i:], '}')
	return text[:i], text[i+1 : j], text[j+1:]
}

// Expand puts values in the place of the names and returns the scope. Values are raw: any 1 to 256 bytes, encoded
// here, so that "a/b" stays one id. A value that cannot be an id, or makes the scope longer than 1024 bytes, is an
// error that wraps [ErrSyntax]: whoever sent it is wrong. A name without a value (or with an empty one) and a
// pattern without an action are other errors: the program is wrong.
func (p Pattern) Expand(value func(name string) (string, bool)) (Scope, error) {
	if p.action == 0 {
		return Scope{}, errNotExpandable
	}
	b := make([]byte, 0, 128) // on the stack, and enough for nearly all
	before, name, rest := cutName(p.text)
	if name == "" {
		return Scope{text: p.text, cut: p.action - 1}, nil
	}
	for ; name != ""; before, name, rest = cutName(rest) {
		v, ok := value(name)
		if !ok || v == "" {
			return Scope{}, fmt.Errorf("scope: pattern %s: there is no value for {%s}", excerpt(p.text, 0), name)
		}
		if f := checkRaw(v); f != nil {
			return Scope{}, f.in("value of {"+name+"}", v)
		}
		b = appendEncoded(append(b, before...), v)
	}
	b = append(b, before...)
	if len(b) > maxText {
		return Scope{}, faultf(0, "the scope would have %d bytes, over the limit of %d", len(b), maxText).in("values for the pattern", p.text)
	}
	return Scope{text: string(b), cut: len(b) - (len(p.text) - p.action) - 1}, nil
}

// IsZero reports whether p is the zero Pattern.
func (p Pattern) IsZero() bool { return p.text == "" }

// String returns the canonical text, empty for the zero Pattern.
func (p Pattern) String() string { return p.text }

// MarshalText returns the canonical text, empty for the zero Pattern. It never fails.
func (p Pattern) MarshalText() ([]byte, error) { return []byte(p.text), nil }

// UnmarshalText is [ParsePattern] into p; empty text gives the zero Pattern. On an error p stays as it was.
func (p *Pattern) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*p = Pattern{}
		return nil
	}
	parsed, err := ParsePattern(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}
