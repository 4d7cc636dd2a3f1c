package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/behest-go/behest/scope"
)

// A Secret is text that is not to be seen: a code, a token, a client secret. It prints as "[redacted]" whatever the
// verb, in JSON and in slog, and reads itself from JSON as plain text. [Secret.Reveal] gives the text. The zero Secret
// is none and prints as nothing. Compare two by what they reveal; == compares identities.
type Secret struct {
	// A function behind a pointer: fmt prints an address for it even where it may not call methods (an unexported
	// field of another struct), and so do dumpers that follow pointers, as those in test libraries do.
	get *func() string
}

// NewSecret wraps text. Empty text gives the zero Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	get := func() string { return text }
	return Secret{&get}
}

// Reveal returns the text, "" for the zero Secret.
func (s Secret) Reveal() string {
	if s.get == nil {
		return ""
	}
	return (*s.get)()
}

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s.get == nil }

// String returns "[redacted]", or "" for the zero Secret.
func (s Secret) String() string {
	if s.get == nil {
		return ""
	}
	return "[redacted]"
}

// Format implements [fmt.Formatter]: every verb prints what [Secret.String] returns.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue implements [slog.LogValuer] with [Secret.String].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements [encoding.TextMarshaler], and so JSON, with [Secret.String].
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] by [NewSecret].
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

// A Grant is what a user's operation gives to the app: the right to get one token, by [Client.Redeem].
type Grant struct {
	ID       string    `json:"id"`        // names the grant, also in the server's ledger; not secret
	Code     Secret    `json:"code"`      // redeemed once, with the app's secret
	Scope    scope.Set `json:"scope"`     // what the token will allow
	RedeemBy time.Time `json:"redeem_by"` // the code is void from here on, by the server's clock
	Event    Event     `json:"event"`     // why
}

// An Event is the operation of a user that caused a grant.
type Event struct {
	ID        string            `json:"id"`               // the message, the click
	Operation string            `json:"operation"`        // "mention", "command", "button.press" and so on
	Account   string            `json:"account"`          // who did it, by the name that this app knows them by
	Domain    scope.Domain      `json:"domain"`           // where
	Text      string            `json:"text,omitempty"`   // what was written. A user's words: not to be trusted
	Target    string            `json:"target,omitempty"` // the command, URL, button or emoji
	Data      map[string]string `json:"data,omitempty"`   // what else the operation has
	At        time.Time         `json:"at"`               // when
}

func (g *Grant) check() error {
	if g.ID == "" || g.Code.IsZero() {
		return errors.New("a grant has an id and a code")
	}
	return nil
}
