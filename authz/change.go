package authz

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
)

// A Change is what is to become of the apps and triggers while the server runs: all of it, or none. Zero fields change
// nothing.
type Change struct {
	// Apps and Triggers are added, or take the place of those with their IDs. An App with neither Secret nor SecretHash
	// keeps what it has of them, unless its AuthMethod is none, and so it is with WebhookSecret: nobody can read them, so
	// that who edits an app need not know them.
	// An app that was removed begins anew: what it was granted before stays dead. What a trigger has granted goes on as
	// it was.
	Apps     []App
	Triggers []grant.Trigger
	// RemoveApps ends apps for good, with their triggers: their tokens and codes are revoked, their deliveries end, and
	// they can authenticate no longer. RemoveTriggers keeps triggers from firing; what they have granted lives on, or
	// stays suspended if they were before. An ID that is not there is no fault: who got no answer asks again.
	RemoveApps     []string
	RemoveTriggers []string
	// SuspendApps and SuspendTriggers do the same, and more: what triggers have granted is refused as well. All of it
	// until they are resumed: what has not expired works again then. Nothing else ends a suspension.
	SuspendApps     []string
	SuspendTriggers []string
	ResumeApps      []string
	ResumeTriggers  []string
	By              string // who makes the change, for the log; at most 256 bytes
}

// Change changes apps and triggers on all servers that share the store, and returns when it holds on every one of them:
// with store.Memory at once, with another store after 3 s. What would come of it is checked as New does, and all faults
// reported at once; each wraps grant.ErrInvalid, and nothing was changed. See grant.Engine.Change for other errors, for
// what goes before Config from then on, and to edit the engine's own view of it as a whole.
//
// Client secrets are in the store only as SHA-256 or the hash given, webhook secrets not in the clear; all are sealed with the Key. The
// change is not in the ledger, which is the accounts', but in the log, with who made it.
func (s *Server) Change(ctx context.Context, c Change) error {
	number, err := s.engine.Change(ctx, c.By, c.edit)
	if number == 0 {
		return err
	}
	note := []any{"number", number, "by", c.By}
	ids := func(name string, list []string) {
		if len(list) > 0 {
			note = append(note, name, list)
		}
	}
	var apps, triggers []string
	for _, a := range c.Apps {
		apps = append(apps, a.ID)
	}
	for _, t := range c.Triggers {
		triggers = append(triggers, triggerID(t))
	}
	ids("apps", apps)
	ids("triggers", triggers)
	ids("remove_apps", c.RemoveApps)
	ids("remove_triggers", c.RemoveTriggers)
	ids("suspend_apps", c.SuspendApps)
	ids("suspend_triggers", c.SuspendTriggers)
	ids("resume_apps", c.ResumeApps)
	ids("resume_triggers", c.ResumeTriggers)
	s.log.InfoContext(ctx, "configuration changed", note...)
	s.Wake() // what was suspended may have waited
	return err
}

// edit is asked again when another change was quicker.
func (c *Change) edit(conf *grant.Config) error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: change: %s", grant.ErrInvalid, fmt.Sprintf(format, args...)))
	}
	apps, triggers := map[string]int{}, map[string]int{}
	for i, a := range conf.Apps {
		apps[a.ID] = i
	}
	for i, t := range conf.Triggers {
		triggers[t.ID] = i
	}
	put, set := map[string]bool{}, map[string]bool{}
	for _, a := range c.Apps {
		i, there := apps[a.ID]
		next := a.kept()
		switch {
		case put[a.ID]:
			fault("app %.80q is there twice", a.ID)
		case !there:
			apps[a.ID] = len(conf.Apps)
			conf.Apps = append(conf.Apps, next)
		default:
			keep := []string{keptWebhook}
			if next.Private[keptSecret].IsZero() && next.Private[keptHash].IsZero() && a.AuthMethod != noAuth {
				keep = append(keep, keptSecret, keptHash)
			}
			for _, name := range keep {
				if old := conf.Apps[i].Private[name]; next.Private[name].IsZero() && !old.IsZero() {
					next.Private[name] = old
				}
			}
			next.Suspended = next.Suspended || conf.Apps[i].Suspended
			conf.Apps[i] = next
		}
		put[a.ID] = true
	}
	for _, t := range c.Triggers {
		t.ID = triggerID(t)
		i, there := triggers[t.ID]
		switch {
		case set[t.ID]:
			fault("trigger %.80q is there twice: give them IDs", t.ID)
		case !there:
			triggers[t.ID] = len(conf.Triggers)
			conf.Triggers = append(conf.Triggers, t)
		default:
			t.Suspended = t.Suspended || conf.Triggers[i].Suspended
			conf.Triggers[i] = t
		}
		set[t.ID] = true
	}
	for _, of := range []struct {
		what                    string
		suspend, resume, remove []string
		there                   map[string]int
		suspended               func(i int, to bool)
	}{
		{"app", c.SuspendApps, c.ResumeApps, c.RemoveApps, apps, func(i int, to bool) { conf.Apps[i].Suspended = to }},
		{"trigger", c.SuspendTriggers, c.ResumeTriggers, c.RemoveTriggers, triggers, func(i int, to bool) { conf.Triggers[i].Suspended = to }},
	} {
		for to, list := range map[bool][]string{true: of.suspend, false: of.resume} {
			for _, id := range list {
				if i, ok := of.there[id]; ok {
					of.suspended(i, to)
				} else {
					fault("there is no %s %.80q to suspend or resume", of.what, id)
				}
			}
		}
		for _, id := range of.suspend {
			if slices.Contains(of.resume, id) {
				fault("%s %.80q is to be suspended and resumed", of.what, id)
			}
		}
		for _, id := range of.remove { // what becomes of what a trigger has granted is decided before it goes
			if slices.Contains(of.suspend, id) || slices.Contains(of.resume, id) {
				fault("%s %.80q is to be removed, and suspended or resumed: make two changes", of.what, id)
			}
		}
	}
	gone, over := map[string]bool{}, map[string]bool{}
	for _, id := range c.RemoveApps {
		if gone[id] = true; put[id] {
			fault("app %.80q is to be there and to be removed", id)
		}
	}
	for _, id := range c.RemoveTriggers {
		if over[id] = true; set[id] {
			fault("trigger %.80q is to be there and to be removed", id)
		}
	}
	conf.Apps = slices.DeleteFunc(conf.Apps, func(a grant.App) bool { return gone[a.ID] })
	conf.Triggers = slices.DeleteFunc(conf.Triggers, func(t grant.Trigger) bool { return over[t.ID] || gone[t.App] && !set[t.ID] })
	return errors.Join(faults...)
}

// Configuration returns the apps and triggers that the server goes by, at most 3 s old: those of Config, and what was
// changed since. The apps are without their secrets. An error means that the store cannot be asked.
func (s *Server) Configuration(ctx context.Context) ([]App, []grant.Trigger, error) {
	v, err := s.views.now(ctx)
	if err != nil {
		return nil, nil, err
	}
	apps, triggers := make([]App, len(v.of.Apps)), make([]grant.Trigger, len(v.of.Triggers))
	for i, a := range v.of.Apps {
		apps[i] = v.apps[a.ID]
		apps[i].Actions, apps[i].RedirectURIs = slices.Clone(apps[i].Actions), slices.Clone(apps[i].RedirectURIs)
	}
	for i, t := range v.of.Triggers {
		t.Allow, t.Match.Keywords = slices.Clone(t.Allow), slices.Clone(t.Match.Keywords)
		triggers[i] = t
	}
	return apps, triggers, nil
}

// An app as the engine keeps it: what only this package must know lies in Private, under these names.
const (
	keptSecret  = "secret"         // the SHA-256 of the client secret
	keptHash    = "secret_hash"    // SecretHash
	keptWebhook = "webhook_secret" // if it is not derived
	keptProfile = "profile"
	keptFault   = "fault" // what is wrong with the secret: there is nobody else who sees it. Such an app passes no check
)

type profile struct {
	Webhook      string   `json:"webhook,omitempty"`
	RedirectURIs []string `json:"redirect_uris,omitempty"`
	Introspect   bool     `json:"introspect,omitempty"`
	JWKS         string   `json:"jwks,omitempty"`
	AuthMethod   string   `json:"token_endpoint_auth_method,omitempty"`
	KeyBound     bool     `json:"dpop_bound_access_tokens,omitempty"`
}

// kept leaves out what is zero of the secrets.
func (a App) kept() grant.App {
	text, _ := json.Marshal(profile{a.Webhook, a.RedirectURIs, a.Introspect, a.JWKS, a.AuthMethod, a.KeyBound}) // plain values
	private := map[string]grant.Secret{keptProfile: grant.NewSecret(string(text))}
	if !a.Secret.IsZero() {
		if fault := secretFault(a.Secret.Reveal()); fault != "" {
			private[keptFault] = grant.NewSecret(fault)
		}
		hash := sha256.Sum256([]byte(a.Secret.Reveal()))
		private[keptSecret] = grant.NewSecret(base64.RawURLEncoding.EncodeToString(hash[:]))
	}
	if !a.SecretHash.IsZero() {
		private[keptHash] = a.SecretHash
	}
	if !a.WebhookSecret.IsZero() {
		private[keptWebhook] = a.WebhookSecret
	}
	out := grant.App{ID: a.ID, Name: a.Name, Actions: a.Actions, RealNames: a.RealNames, Suspended: a.Suspended, Deliver: grant.Poll, Private: private}
	if a.Webhook != "" {
		out.Deliver = grant.Push
	}
	return out
}

// clientOf is the way back, with the webhook secret and without the client secret, of which there is a hash. It reports
// all that is wrong with how the app authenticates.
func clientOf(a *grant.App) (client, error) {
	c := client{app: App{ID: a.ID, Name: a.Name, Actions: a.Actions, RealNames: a.RealNames, Suspended: a.Suspended, WebhookSecret: a.Private[keptWebhook]}}
	var p profile
	var faults []error
	if text := a.Private[keptProfile]; !text.IsZero() {
		if err := json.Unmarshal([]byte(text.Reveal()), &p); err != nil {
			faults = append(faults, err)
		}
	}
	c.app.Webhook, c.app.RedirectURIs, c.app.Introspect, c.app.JWKS, c.app.AuthMethod, c.app.KeyBound = p.Webhook, p.RedirectURIs, p.Introspect, p.JWKS, p.AuthMethod, p.KeyBound
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	secret, hashed := a.Private[keptSecret], a.Private[keptHash]
	if text := a.Private[keptFault]; !text.IsZero() {
		fault("Secret %s", text.Reveal())
	} else if !secret.IsZero() {
		if raw, err := base64.RawURLEncoding.DecodeString(secret.Reveal()); err != nil || copy(c.hash[:], raw) != len(c.hash) {
			fault("Secret %s", secretFault(""))
		}
	}
	if !hashed.IsZero() {
		var err error
		if c.slow, err = parseHash(hashed.Reveal()); err != nil {
			fault("SecretHash %w", err)
		}
		if !secret.IsZero() {
			fault("Secret and SecretHash are both there")
		}
	}
	if p.JWKS != "" {
		var err error
		if c.keys, err = jose.ParseSet([]byte(p.JWKS)); err != nil {
			fault("JWKS: %w", err)
		}
	}
	hasSecret, hasKeys := !secret.IsZero() || !hashed.IsZero(), p.JWKS != ""
	switch p.AuthMethod {
	case "":
		if !hasSecret && !hasKeys {
			fault("Secret %s", secretFault(""))
		}
	case secretBasic, secretPost:
		if !hasSecret {
			fault("Secret %s", secretFault(""))
		}
	case privateKey:
		if !hasKeys {
			fault("AuthMethod: %s needs JWKS", privateKey)
		}
	case noAuth:
		if hasSecret || hasKeys {
			fault("AuthMethod: a public client has neither Secret nor JWKS")
		}
		if len(a.Actions) > 0 || p.Introspect {
			fault("AuthMethod: a public client has no Actions and does not introspect: nobody could tell who comes")
		}
	default:
		fault("AuthMethod: %.40q is none of %s, %s, %s, %s", p.AuthMethod, secretBasic, secretPost, privateKey, noAuth)
	}
	return c, errors.Join(faults...)
}

// views is what a Server makes of the engine's configuration: made once for each.
type views struct {
	engine *grant.Engine
	key    grant.Secret
	access []byte     // the key for the access tokens of clients without a secret
	mu     sync.Mutex // held while one is made
	last   atomic.Pointer[view]
}

type view struct {
	of      *grant.Config  // only its Apps and Triggers
	apps    map[string]App // without secrets
	hooks   map[string]hook
	roster  *roster           // of those that are not suspended
	targets map[string]Target // likewise
}

// now is for what the server lets through: at most 3 s old.
func (v *views) now(ctx context.Context) (*view, error) {
	conf, err := v.engine.Configuration(ctx)
	if err != nil {
		return nil, err
	}
	if last := v.last.Load(); last.of == conf {
		return last, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	last := v.last.Load()
	if last.of == conf {
		return last, nil
	}
	next, err := v.make(conf, last)
	if err == nil {
		v.last.Store(next)
	}
	return next, err
}

// latest is for what is no authority: the last one there was, if the store cannot be asked.
func (v *views) latest(ctx context.Context) *view {
	if now, err := v.now(ctx); err == nil {
		return now
	}
	return v.last.Load()
}

func (v *views) make(conf *grant.Config, last *view) (*view, error) {
	next := &view{of: conf, apps: map[string]App{}, hooks: map[string]hook{}, targets: map[string]Target{}, roster: newRoster()}
	for i := range conf.Apps {
		of, err := clientOf(&conf.Apps[i])
		a := of.app
		if err != nil {
			return nil, fmt.Errorf("authz: app %.80q: %w", a.ID, err)
		}
		h, ok := hook{}, false
		if last != nil {
			h, ok = last.hooks[a.ID]
		}
		if !ok || h.given != a.WebhookSecret.Reveal() { // keys of Ed25519 take their time
			if h, err = deriveHook(v.key, a); err != nil {
				return nil, fmt.Errorf("authz: app %.80q: %w", a.ID, err)
			}
		}
		a.WebhookSecret = grant.Secret{}
		next.apps[a.ID], next.hooks[a.ID] = a, h
		if a.Suspended {
			continue
		}
		of.app = a
		next.roster.add(of, v.access)
		if a.Webhook != "" {
			next.targets[a.ID] = Target{URL: a.Webhook, Keys: []webhook.Key{h.secret, h.signing}}
		}
	}
	return next, nil
}

func (v *views) roster(ctx context.Context) (*roster, error) {
	now, err := v.now(ctx)
	if err != nil {
		return nil, err
	}
	return now.roster, nil
}

func (v *views) targets(ctx context.Context) (map[string]Target, error) {
	now, err := v.now(ctx)
	if err != nil {
		return nil, err
	}
	return now.targets, nil
}
