package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
)

// A Consent says whether the account is asked before a grant gets its code.
type Consent string

// The kinds of consent. The zero value is the default of the trigger's operation.
const (
	Implied Consent = "implied" // the operation is the consent: an explicit act, such as pressing a labelled button
	Once    Consent = "once"    // asked the first time per account, app, domain and actions; the answer is remembered for 90 days
	Always  Consent = "always"  // asked each time
)

// A Delivery says how a grant's one-time code reaches the app.
type Delivery string

// The ways of delivery. The zero value is Redirect for link.open and page.open, else the app's own.
const (
	Push     Delivery = "push"     // a signed webhook
	Redirect Delivery = "redirect" // in a link, through the user's client
	Poll     Delivery = "poll"     // the app asks
)

func (d Delivery) known() bool { return d == Push || d == Redirect || d == Poll }

// Unlimited, as the Uses of a Trigger, sets no count: the token lives by its clock alone.
const Unlimited = -1

// Limits of a trigger. A configuration beyond them is an error, never a silent clamp (P4).
const (
	maxLife         = 7 * 24 * time.Hour
	maxUses         = 1_000_000
	maxStateless    = 5 * time.Minute
	maxRedeemWithin = time.Hour
	// A code in a link stands in histories and logs: it lives for a minute at most.
	maxRedeemRedirect = 60 * time.Second
	maxKeywords       = 100
	// Actions travel in the token: with the limits of all that travels with them, it is never longer than maxToken.
	maxAllow   = 32
	maxActions = 900
)

// A Trigger predetermines: when this operation happens there, that app gets a grant for these actions, with this life
// and count. A trigger is data; its JSON has the names given here in lower case with underscores, durations as
// strings such as "10m", and refuses unknown fields.
type Trigger struct {
	// ID names the trigger; with App it is part of what makes a grant unique (P2), so keep it when you edit. With another
	// App it is another trigger, which grants again what it sees again. Empty: made from App, On and In.
	ID  string
	App string    // who gets the grant
	On  Operation // what must happen
	In  string    // where: a scope.Pattern, such as "group:*", which also covers what lies below; "*" is anywhere
	// Match narrows On. The zero Match takes every event that names the App, or none.
	Match Match
	// Allow is the actions granted, at most 32 with names of at most 900 bytes in all; each must be one of the app's.
	Allow []string
	// At binds the grant to the nearest domain of this kind, the event's own or one above it: said in a thread,
	// granted for the group. Empty: the event's domain.
	At string
	// For is how long the token lives once redeemed, at most 7 days. Zero: 60 s for buttons, links, pages, files,
	// reactions, keywords and joins; 10 min for mentions and commands; 60 s for others.
	For time.Duration
	// Uses is how often it may be spent, at most 1,000,000, or Unlimited. Zero: 3 for buttons, 5 for mentions and
	// commands, else 1.
	Uses int
	// RedeemWithin is how long the code waits, at most an hour, with Redirect at most 60 s. Zero: 60 s.
	RedeemWithin time.Duration
	// Consent. Zero: Implied for mentions, commands, buttons, links and pages; Once for all others, whose evidence
	// that the user meant it is weaker.
	Consent Consent
	Deliver Delivery // zero: Redirect for link.open and page.open, else the app's own
	// Delegates are the apps, by ID and at most 8, that may exchange a token of this trigger for a narrower one of their
	// own, once its app has handed it to them (see [Engine.Derive]). Each must be registered for one of Allow at least.
	// Empty: none.
	Delegates []string
	// DeriveDepth is how many tokens may be derived, one of the other, at most 8. Zero: 4. Negative, -1: none.
	DeriveDepth int
	Chain       bool // also fires on what apps do with a delegation token, to a depth of four; false: never (P7)
	// PerMinute bounds the grants that one account gets from this trigger in a minute by the clock. Zero: no bound.
	PerMinute int
	// Suspended triggers do not fire, and what they have granted is refused as revoked, as long as this is so.
	Suspended bool
	// Stateless gives the app a signed token, which resource servers verify alone (see package authz), where there is a
	// server that signs. What is given up: a use of it is not in the ledger, only its redemption is; neither Permit nor
	// a revocation is asked until it expires. So only for what Uses says is Unlimited and For at most 5 minutes, and only
	// for an app with RealNames, since the token names the account to whoever holds it. False: a token that is spent.
	Stateless bool
}

// A Match narrows a trigger to some events of its operation. All fields that are set must agree.
type Match struct {
	Keywords   []string `json:"keywords,omitempty"`    // the text contains one of them, as a word, whatever its case; in scripts without spaces, anywhere
	Command    string   `json:"command,omitempty"`     // Target is this command; a leading "/" does not count
	LinkPrefix string   `json:"link_prefix,omitempty"` // Target begins, byte for byte, with this URL, which has a scheme and a host in lower case, and a path: at least "/"
	Target     string   `json:"target,omitempty"`      // Target is exactly this
}

type triggerJSON struct {
	ID           string    `json:"id,omitempty"`
	App          string    `json:"app"`
	On           Operation `json:"on"`
	In           string    `json:"in"`
	Match        *Match    `json:"match,omitempty"`
	Allow        []string  `json:"allow"`
	At           string    `json:"at,omitempty"`
	For          *string   `json:"for,omitempty"`
	Uses         *int      `json:"uses,omitempty"`
	RedeemWithin *string   `json:"redeem_within,omitempty"`
	Consent      Consent   `json:"consent,omitempty"`
	Deliver      Delivery  `json:"deliver,omitempty"`
	Delegates    []string  `json:"delegates,omitempty"`
	DeriveDepth  int       `json:"derive_depth,omitempty"`
	Chain        bool      `json:"chain,omitempty"`
	PerMinute    int       `json:"per_minute,omitempty"`
	Suspended    bool      `json:"suspended,omitempty"`
	Stateless    bool      `json:"stateless,omitempty"`
}

// MarshalJSON writes the trigger with durations as strings.
func (t Trigger) MarshalJSON() ([]byte, error) {
	j := triggerJSON{ID: t.ID, App: t.App, On: t.On, In: t.In, Allow: t.Allow, At: t.At,
		Consent: t.Consent, Deliver: t.Deliver, Delegates: t.Delegates, DeriveDepth: t.DeriveDepth, Chain: t.Chain, PerMinute: t.PerMinute, Suspended: t.Suspended}
	j.Stateless = t.Stateless
	if !t.Match.isZero() {
		j.Match = &t.Match
	}
	if t.Uses != 0 {
		j.Uses = &t.Uses
	}
	if t.For != 0 {
		text := t.For.String()
		j.For = &text
	}
	if t.RedeemWithin != 0 {
		text := t.RedeemWithin.String()
		j.RedeemWithin = &text
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes. Unknown and repeated fields, wrong types and durations that are not
// strings are errors that name the field and wrap [ErrInvalid]. Whether the values make sense is decided where the
// trigger is used.
func (t *Trigger) UnmarshalJSON(text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var j triggerJSON
	if err := dec.Decode(&j); err != nil {
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
			return fmt.Errorf("%w: trigger field %q: a %s is not a %s", ErrInvalid, wrong.Field, wrong.Value, wrong.Type)
		}
		return fmt.Errorf("%w: trigger: %s", ErrInvalid, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); err != io.EOF {
		return invalid("trigger: text after the object")
	}
	// encoding/json takes names in any case, and the last of several.
	if err := exactNames("", text); err != nil {
		return err
	}
	out := Trigger{ID: j.ID, App: j.App, On: j.On, In: j.In, Allow: j.Allow, At: j.At,
		Consent: j.Consent, Deliver: j.Deliver, Delegates: j.Delegates, DeriveDepth: j.DeriveDepth, Chain: j.Chain, PerMinute: j.PerMinute, Suspended: j.Suspended}
	if j.Match != nil {
		out.Match = *j.Match
	}
	out.Stateless = j.Stateless
	if j.Uses != nil {
		// Who writes 0 does not mean the default.
		if out.Uses = *j.Uses; out.Uses == 0 {
			return invalid("trigger field \"uses\": 0 is no number of uses; leave it out for the default, or say %d for no count", Unlimited)
		}
	}
	for _, d := range []struct {
		field string
		text  *string
		to    *time.Duration
	}{{"for", j.For, &out.For}, {"redeem_within", j.RedeemWithin, &out.RedeemWithin}} {
		if d.text == nil {
			continue
		}
		v, err := time.ParseDuration(*d.text)
		if err != nil || v <= 0 {
			return invalid("trigger field %q: %.80q is not a duration above zero, such as \"10m\"", d.field, *d.text)
		}
		*d.to = v
	}
	*t = out
	return nil
}

// exactNames refuses what encoding/json lets pass: names in another case, and names that occur twice. The text was
// decoded before.
func exactNames(path string, text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		switch {
		case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "":
			return invalid("trigger: unknown field %.80q", path+name)
		case seen[name]:
			return invalid("trigger field %q is there twice", path+name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		if err := exactNames(path+name+".", value); err != nil {
			return err
		}
	}
	return nil
}

func (m Match) isZero() bool {
	return len(m.Keywords) == 0 && m.Command == "" && m.LinkPrefix == "" && m.Target == ""
}

// rules are the defaults of an operation: the weaker the evidence that the user meant it, the shorter and fewer.
type rule struct {
	life    time.Duration
	uses    int
	consent Consent
}

func (op Operation) rule() rule {
	switch op {
	case Mention, Command:
		return rule{10 * time.Minute, 5, Implied}
	case ButtonPress:
		return rule{60 * time.Second, 3, Implied}
	case LinkOpen, PageOpen:
		return rule{60 * time.Second, 1, Implied}
	}
	return rule{60 * time.Second, 1, Once}
}

// A trigger is a Trigger made ready: defaults filled in, patterns parsed.
type trigger struct {
	Trigger
	in       scope.Pattern
	keywords []string // folded
	words    *words   // of the keywords, where the index looks up by something else
}

// prepare returns every fault at once, each naming the trigger and the field, and the trigger in any case, for its ID.
func (t Trigger) prepare(apps map[string]*registered, catalog *scope.Catalog) (*trigger, error) {
	t = t.named()
	p := &trigger{Trigger: t}
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, invalid("trigger %.80q: %s: %s", t.ID, field, fmt.Sprintf(format, args...)))
	}
	if len(t.ID) > maxID || !utf8.ValidString(t.ID) {
		fault("id", "has %d bytes, want UTF-8 of at most %d", len(t.ID), maxID)
	}
	app := apps[t.App]
	if app == nil {
		fault("app", "no app has the ID %.80q", t.App)
	}
	if err := scope.CheckAction(string(t.On)); err != nil {
		fault("on", "%v", err)
	}
	var err error
	if p.in, err = scope.ParsePattern(t.In); err != nil {
		fault("in", "%v", err)
	} else if p.in.Action() != "" {
		fault("in", "%.80q has an action; a trigger's pattern is a domain, such as \"group:*\"", t.In)
	}
	if len(t.Allow) == 0 || len(t.Allow) > maxAllow {
		fault("allow", "names %d actions, want 1 to %d", len(t.Allow), maxAllow)
	}
	allow := slices.Compact(slices.Sorted(slices.Values(t.Allow)))
	if len(allow) < len(t.Allow) {
		fault("allow", "names an action twice")
	}
	for _, action := range allow {
		if _, ok := catalog.Lookup(action); !ok {
			fault("allow", "the catalog has no action %.80q", action)
		} else if app != nil && !slices.Contains(app.Actions, action) {
			fault("allow", "the app %.80q is not registered for %.80q", t.App, action)
		}
	}
	if n := len(strings.Join(allow, " ")); n > maxActions {
		fault("allow", "the actions' names have %d bytes together, at most %d", n, maxActions)
	}
	p.Allow = allow
	if t.At != "" {
		if _, err := (scope.Domain{}).Child(t.At, "x"); err != nil {
			fault("at", "%.80q is not a kind of domain", t.At)
		}
	}
	def := t.On.rule()
	if p.For == 0 {
		p.For = def.life
	}
	if p.For < time.Second || p.For > maxLife {
		fault("for", "%v is not between 1s and %v", p.For, maxLife)
	}
	if p.Uses == 0 {
		p.Uses = def.uses
	}
	if p.Uses != Unlimited && (p.Uses < 1 || p.Uses > maxUses) {
		fault("uses", "%d is not between 1 and %d, nor Unlimited (%d)", p.Uses, maxUses, Unlimited)
	}
	if t.Stateless {
		if p.Uses != Unlimited {
			fault("stateless", "nobody counts the uses of such a token: uses must be Unlimited (%d)", Unlimited)
		}
		if p.For > maxStateless {
			fault("stateless", "nobody revokes such a token: for is %v, at most %v", p.For, maxStateless)
		}
		if app != nil && !app.RealNames {
			fault("stateless", "such a token names the account, and the app %.80q sees no real names", t.App)
		}
		if len(t.Delegates) > 0 || t.DeriveDepth > 0 {
			fault("stateless", "nothing is derived of such a token: delegates and derive_depth have no use")
		}
	}
	switch p.Consent {
	case "":
		p.Consent = def.consent
	case Implied, Once, Always:
	default:
		fault("consent", "%.80q is none of implied, once, always", p.Consent)
	}
	if p.Deliver == "" && (t.On == LinkOpen || t.On == PageOpen) {
		p.Deliver = Redirect
	}
	if p.Deliver == "" && app != nil && app.Deliver.known() {
		p.Deliver = app.Deliver
	}
	if p.Deliver == "" {
		p.Deliver = Poll
	}
	if !p.Deliver.known() {
		fault("deliver", "%.80q is none of push, redirect, poll", p.Deliver)
	}
	most := maxRedeemWithin
	if p.Deliver == Redirect {
		most = maxRedeemRedirect
	}
	if p.RedeemWithin == 0 {
		p.RedeemWithin = maxRedeemRedirect
	}
	if p.RedeemWithin < time.Second || p.RedeemWithin > most {
		fault("redeem_within", "%v is not between 1s and %v", p.RedeemWithin, most)
	}
	if len(t.Delegates) > maxDelegates {
		fault("delegates", "names %d apps, at most %d", len(t.Delegates), maxDelegates)
	}
	for i, id := range t.Delegates {
		switch delegate := apps[id]; {
		case delegate == nil:
			fault("delegates", "no app has the ID %.80q", id)
		case id == t.App:
			fault("delegates", "%.80q is the trigger's own app, which needs no leave", id)
		case slices.Contains(t.Delegates[:i], id):
			fault("delegates", "%.80q is there twice", id)
		case !slices.ContainsFunc(allow, func(action string) bool { return slices.Contains(delegate.Actions, action) }):
			fault("delegates", "the app %.80q is registered for none of the actions", id)
		}
	}
	if p.DeriveDepth == 0 {
		p.DeriveDepth = deriveDepth
	}
	if p.DeriveDepth < -1 || p.DeriveDepth > maxDeriveDepth {
		fault("derive_depth", "%d is not between -1 and %d", p.DeriveDepth, maxDeriveDepth)
	}
	if p.PerMinute < 0 || p.PerMinute > maxUses {
		fault("per_minute", "%d is not between 0 and %d", p.PerMinute, maxUses)
	}
	if len(t.Match.Keywords) > maxKeywords {
		fault("match.keywords", "%d keywords, at most %d", len(t.Match.Keywords), maxKeywords)
	}
	for _, k := range t.Match.Keywords {
		folded := fold(strings.TrimSpace(k))
		if folded == "" || len(folded) > maxID || !utf8.ValidString(k) {
			fault("match.keywords", "%.80q is empty, longer than %d bytes or not UTF-8", k, maxID)
			continue
		}
		p.keywords = append(p.keywords, folded)
	}
	p.Match.Command = strings.TrimPrefix(t.Match.Command, "/")
	if t.Match.Command != "" && p.Match.Command == "" {
		fault("match.command", "%q is no command", t.Match.Command)
	}
	if link := t.Match.LinkPrefix; link != "" {
		// Without a path, "https://a.example" would also take "https://a.example.evil.test". The comparison is by
		// bytes, so what browsers write in lower case (RFC 3986 §6.2.2.1) must be.
		u, err := url.Parse(link)
		switch {
		case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" || u.User != nil || !strings.HasPrefix(u.Path, "/"):
			fault("match.link_prefix", "%.80q is not a URL with a scheme, a host and a path", link)
		case origin(link) != strings.ToLower(origin(link)):
			fault("match.link_prefix", "%.80q has a scheme or a host that is not in lower case", link)
		}
	}
	return p, errors.Join(faults...)
}
