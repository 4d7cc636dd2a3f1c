package grant

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
)

// An Operation is what a user did. Applications add their own; a name has the grammar of an action
// (scope.CheckAction), such as "poll.vote".
type Operation string

// The built-in operations. Target is what of the event tells them apart: the command, the URL, the button, the emoji,
// the file.
const (
	Mention     Operation = "mention"      // named an app in a message; the event names the App
	Command     Operation = "command"      // gave a command, such as "/book"; Target is the command
	LinkOpen    Operation = "link.open"    // opened an app's link; Target is the URL
	PageOpen    Operation = "page.open"    // opened an app's page inside the server; Target is the page
	ButtonPress Operation = "button.press" // pressed an app's button; Target is the button
	ReactionAdd Operation = "reaction.add" // reacted to a message; Target is the emoji
	MessagePost Operation = "message.post" // posted a message; Text is matched against keywords
	MemberJoin  Operation = "member.join"  // joined the domain
	FileShare   Operation = "file.share"   // shared a file; Target is the file
)

// namesApp reports whether an event of the operation always names an app.
func (op Operation) namesApp() bool { return op == Mention || op == ButtonPress }

// Limits of an Event, in bytes; Data counts keys and values.
const (
	maxID     = 256
	maxText   = 64 << 10
	maxTarget = 2048
	maxData   = 16 << 10
	// An event may be emitted late, from a queue; it is remembered for longer than that (P2).
	maxEventAge  = time.Hour
	maxEventSkew = time.Minute
)

// An Event is an operation of a user that the server itself saw and allowed. Never build one from what a client
// claims: the account, the domain and the app are those of the server's own records, the app by its ID and never by a
// name in the text; quotes, forwards and edits are no operations.
type Event struct {
	// ID names the operation, such as the message's ID; with Operation and Account it is unique: a message that
	// mentions two apps is two events, and needs two IDs, such as the message's with the app's. 1 to 256 bytes.
	ID        string
	Operation Operation
	Account   string       // who did it: the token's subject (P1)
	Domain    scope.Domain // where
	App       string       // the app that the operation names, if it names one
	Text      string       // what was said, at most 64 KiB
	Target    string       // what it was done to, at most 2 KiB; see the operations
	Data      map[string]string
	At        time.Time // when; zero means now. More than an hour ago, or more than a minute ahead, is refused
	By        string    // the grant with which it was done, if an app did it in the account's name (P7)
}

// check is for events that match a trigger; what it refuses elsewhere harms nobody.
func (ev *Event) check(now time.Time) error {
	switch {
	case ev.ID == "" || len(ev.ID) > maxID:
		return invalid("event ID has %d bytes, want 1 to %d", len(ev.ID), maxID)
	case ev.Account == "" || len(ev.Account) > maxID:
		return invalid("event account has %d bytes, want 1 to %d", len(ev.Account), maxID)
	case len(ev.Text) > maxText:
		return invalid("event text has %d bytes, at most %d", len(ev.Text), maxText)
	case len(ev.Target) > maxTarget:
		return invalid("event target has %d bytes, at most %d", len(ev.Target), maxTarget)
	case !utf8.ValidString(ev.ID) || !utf8.ValidString(ev.Account) || !utf8.ValidString(ev.Text) || !utf8.ValidString(ev.Target):
		return invalid("event is not UTF-8")
	case !ev.At.IsZero() && now.Sub(ev.At) > maxEventAge:
		return invalid("event is older than %v", maxEventAge)
	case ev.At.Sub(now) > maxEventSkew:
		return invalid("event is %v ahead of the clock", ev.At.Sub(now))
	}
	n := 0
	for k, v := range ev.Data {
		if n += len(k) + len(v); n > maxData {
			return invalid("event data is larger than %d bytes", maxData)
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return invalid("event data is not UTF-8")
		}
	}
	return nil
}

// fingerprint is over everything but At, which may be "now" at each try.
func (ev *Event) fingerprint() [sha256.Size]byte {
	b := make([]byte, 0, 256+len(ev.Text))
	for _, s := range []string{string(ev.Operation), ev.ID, ev.Account, ev.Domain.String(), ev.App, ev.Text, ev.Target, ev.By} {
		b = appendString(b, s)
	}
	for _, k := range slices.Sorted(maps.Keys(ev.Data)) {
		b = appendString(appendString(b, k), ev.Data[k])
	}
	return sha256.Sum256(b)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
