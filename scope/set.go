package scope

import (
	"errors"
	"iter"
	"slices"
	"strings"
)

// Why a set says no.
var (
	// ErrWiden is wrapped when [Set.Narrow] is asked for something that the set does not cover.
	ErrWiden = errors.New("scope: asks for more than was granted")
	// ErrWrongDomain is wrapped when the domain is not one of those allowed.
	ErrWrongDomain = errors.New("scope: wrong domain")
	// ErrWrongAction is wrapped when the domain is right, but the action is not allowed there.
	ErrWrongAction = errors.New("scope: wrong action")
)

// A Set is any number of scopes, as an OAuth scope parameter carries them (RFC 6749 §3.3). Its text is canonical:
// sorted by bytes, each scope once, one space between. It is comparable with ==, so that equal sets are equal
// values. The zero Set is empty and allows nothing.
type Set struct {
	text string
}

// NewSet returns the set of the scopes, in any order and with repetitions; zero Scopes are left out.
// It takes any number, but a set of more than 128 scopes cannot be written as text that is read back.
func NewSet(scopes ...Scope) Set {
	texts := make([]string, 0, len(scopes))
	for _, s := range scopes {
		if s.text != "" {
			texts = append(texts, s.text)
		}
	}
	return joined(texts)
}

func joined(texts []string) Set {
	slices.Sort(texts)
	return Set{text: strings.Join(slices.Compact(texts), " ")}
}

// ParseSet parses scopes with one space between them, in any order; a repeated one counts once. Empty text is the
// empty set. Errors wrap [ErrSyntax]: a bad scope, a space too many, more than 128 scopes.
func ParseSet(text string) (Set, error) {
	if text == "" {
		return Set{}, nil
	}
	canonical := true
	var texts []string
	last := ""
	for n, off := 1, 0; ; n++ {
		if n > maxSet {
			return Set{}, faultf(off, "more than %d scopes", maxSet).in("set", text)
		}
		// RFC 6749 §3.3: scope = scope-token *( SP scope-token ), so a space stands between two tokens only.
		token, _, more := strings.Cut(text[off:], " ")
		if token == "" {
			return Set{}, faultf(off, "scope %d is empty: one space stands between two scopes", n).in("set", text)
		}
		s, f := parseScope(token)
		if f != nil {
			f.off += off
			return Set{}, f.in("set", text)
		}
		// A text that is canonical as it came is kept as it is; the first difference starts a list.
		if canonical && (s.text != token || s.text <= last) {
			canonical = false
			for t := range strings.SplitSeq(text[:max(0, off-1)], " ") {
				if t != "" {
					texts = append(texts, t)
				}
			}
		}
		if !canonical {
			texts = append(texts, s.text)
		}
		last = s.text
		off += len(token) + 1
		if !more {
			break
		}
	}
	if canonical {
		return Set{text: text}, nil
	}
	return joined(texts), nil
}

// Allows reports whether a scope of the set covers s. Nil is yes. The error wraps [ErrWrongAction] if the set has
// other actions there, else [ErrWrongDomain]. A zero Scope is never allowed.
func (set Set) Allows(s Scope) error {
	if set.covers(s) {
		return nil
	}
	domain := s.text[:s.cut]
	for text := set.text; text != ""; {
		var token string
		token, text, _ = strings.Cut(text, " ")
		if covers(token[:strings.LastIndexByte(token, '/')], domain) {
			return &refusal{ErrWrongAction, s.text, set.text}
		}
	}
	return &refusal{ErrWrongDomain, s.text, set.text}
}

func (set Set) covers(s Scope) bool {
	domain, action := s.text[:s.cut], s.text[s.cut:] // action with its "/"
	for text := set.text; text != ""; {
		var token string
		token, text, _ = strings.Cut(text, " ")
		if above, ok := strings.CutSuffix(token, action); ok && covers(above, domain) {
			return true
		}
	}
	return false
}

// Narrow returns other if the set covers every scope of it. Otherwise the error wraps [ErrWiden] and names the
// first scope that it does not cover; nothing is clamped. An empty other gives the empty set: where leaving the
// scope out means "all of it" (RFC 6749 §6), the caller says so.
func (set Set) Narrow(other Set) (Set, error) {
	if set == other {
		return other, nil
	}
	for s := range other.All() {
		if !set.covers(s) {
			return Set{}, &refusal{ErrWiden, s.text, set.text}
		}
	}
	return other, nil
}

// All returns the scopes, sorted by their texts.
func (set Set) All() iter.Seq[Scope] {
	return func(yield func(Scope) bool) {
		for text := set.text; text != ""; {
			var token string
			token, text, _ = strings.Cut(text, " ")
			if !yield(Scope{text: token, cut: strings.LastIndexByte(token, '/')}) {
				return
			}
		}
	}
}

// IsZero reports whether the set is empty.
func (set Set) IsZero() bool { return set.text == "" }

// String returns the canonical text, empty for the empty set.
func (set Set) String() string { return set.text }

// MarshalText returns the canonical text, empty for the empty set. A set that [ParseSet] would refuse for its
// size is an error, so that nothing is written that cannot be read.
func (set Set) MarshalText() ([]byte, error) {
	if strings.Count(set.text, " ") >= maxSet {
		return nil, faultf(len(set.text), "more than %d scopes", maxSet).in("set", set.text)
	}
	return []byte(set.text), nil
}

// UnmarshalText is [ParseSet] into set. On an error the set stays as it was.
func (set *Set) UnmarshalText(text []byte) error {
	parsed, err := ParseSet(string(text))
	if err != nil {
		return err
	}
	*set = parsed
	return nil
}

// A refusal puts its words together when somebody reads them: most are only asked for their kind.
type refusal struct {
	kind error
	want string
	have string
}

func (r *refusal) Error() string {
	switch {
	case r.want == "":
		return r.kind.Error() + ": no scope was asked for"
	case r.have == "":
		return r.kind.Error() + ": " + excerpt(r.want, 0) + " is not in the empty set"
	}
	return r.kind.Error() + ": " + excerpt(r.want, 0) + " is not within " + excerpt(r.have, 0)
}

func (r *refusal) Unwrap() error { return r.kind }
