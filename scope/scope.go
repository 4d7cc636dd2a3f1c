package scope

import "strings"

// A Scope is one action in one domain and what lies below it, such as group:42/message.write. It is an OAuth
// scope-token (RFC 6749 §3.3), canonical, and comparable with ==. The zero Scope is none: nothing covers it.
type Scope struct {
	text string
	cut  int // where the domain ends
}

// New joins a domain and an action. Errors wrap [ErrSyntax]: a zero domain, an action that [CheckAction] refuses,
// more than 1024 bytes in all.
func New(domain Domain, action string) (Scope, error) {
	if domain.text == "" {
		return Scope{}, faultf(0, "a scope wants a domain").in("domain", "")
	}
	if err := CheckAction(action); err != nil {
		return Scope{}, err
	}
	if n := len(domain.text) + 1 + len(action); n > maxText {
		return Scope{}, faultf(len(domain.text), "a scope of %d bytes, over the limit of %d", n, maxText).in("domain", domain.text)
	}
	return Scope{text: domain.text + "/" + action, cut: len(domain.text)}, nil
}

// Parse parses a scope such as "group:42/thread:7/message.write". Errors wrap [ErrSyntax]; empty text is one.
func Parse(text string) (Scope, error) {
	s, f := parseScope(text)
	if f != nil {
		return Scope{}, f.in("scope", text)
	}
	return s, nil
}

func parseScope(text string) (Scope, *fault) {
	if len(text) > maxText {
		return Scope{}, faultf(maxText, "%d bytes, over the limit of %d", len(text), maxText)
	}
	if strings.IndexByte(text, ':') < 0 {
		return Scope{}, faultf(0, "a scope is domain/action, and the domain is missing")
	}
	cut := strings.LastIndexByte(text, '/')
	if strings.IndexByte(text[max(0, cut):], ':') >= 0 {
		// The last segment belongs to the domain. If that is at fault itself, that is the more helpful thing to say.
		if _, f := checkDomain(text, len(text)); f != nil {
			return Scope{}, f
		}
		return Scope{}, faultf(len(text), "a scope is domain/action, and the action is missing")
	}
	canonical, f := checkDomain(text, cut)
	if f != nil {
		return Scope{}, f
	}
	if f := checkAction(text, cut+1, len(text)); f != nil {
		return Scope{}, f
	}
	if !canonical {
		text = canonicalize(text)
		cut = strings.LastIndexByte(text, '/')
	}
	return Scope{text: text, cut: cut}, nil
}

// MustParse is [Parse] for texts in the program. It panics on an error, so never give it input.
func MustParse(text string) Scope {
	s, err := Parse(text)
	if err != nil {
		panic(err)
	}
	return s
}

// Domain returns where: the zero Domain for the zero Scope.
func (s Scope) Domain() Domain { return Domain{text: s.text[:s.cut]} }

// Action returns what: empty for the zero Scope.
func (s Scope) Action() string {
	if s.text == "" {
		return ""
	}
	return s.text[s.cut+1:]
}

// Covers reports whether other is the same action in a domain that s covers. The zero Scope covers nothing and
// nothing covers it.
func (s Scope) Covers(other Scope) bool {
	// With its "/" the action cannot be half of a longer one.
	return s.text[s.cut:] == other.text[other.cut:] && covers(s.text[:s.cut], other.text[:other.cut])
}

// IsZero reports whether s is the zero Scope: none.
func (s Scope) IsZero() bool { return s.text == "" }

// String returns the canonical text, empty for the zero Scope.
func (s Scope) String() string { return s.text }

// MarshalText returns the canonical text, empty for the zero Scope. It never fails.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.text), nil }

// UnmarshalText is [Parse] into s; empty text gives the zero Scope. On an error s stays as it was.
func (s *Scope) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = Scope{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// CheckAction checks the name of an action: words of a-z, 0-9, "_" and "-" that begin with a-z, joined by ".", at
// most 64 bytes, such as "message.write". Nil is yes; errors wrap [ErrSyntax].
func CheckAction(name string) error {
	if f := checkAction(name, 0, len(name)); f != nil {
		return f.in("action", name)
	}
	return nil
}

func checkAction(text string, from, to int) *fault {
	switch {
	case from == to:
		return faultf(from, "the action is empty")
	case to-from > maxAction:
		return faultf(from+maxAction, "the action has %d bytes, over the limit of %d", to-from, maxAction)
	}
	first := true
	for i := from; i < to; i++ {
		switch c := text[i]; {
		case first && !isLower(c):
			return faultf(i, "a word of an action begins with a-z, not with %s", char(c))
		case c == '.':
			first = true
		case !isWord(c):
			return faultf(i, "an action has a-z, 0-9, \"_\", \"-\" and \".\", not %s", char(c))
		default:
			first = false
		}
	}
	if first {
		return faultf(to, "an action does not end with \".\"")
	}
	return nil
}
