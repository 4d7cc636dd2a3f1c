package authz

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/guard"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A Server is the authorization server and the guard of the API, in one process with the social server that embeds
// it. Make it with New. It is safe for concurrent use.
type Server struct {
	engine    *grant.Engine
	verifier  *Verifier
	deliverer *Deliverer
	endpoints map[string]http.Handler // by path
	views     *views
	wake      *wakeup
	waker     Waker // nil: there is none
	guard     *guard.Guard
	store     store.Store
	now       func() time.Time
	issuer    string
	log       *slog.Logger
}

// A hook is the keys that sign an app's pushes.
type hook struct {
	secret, signing webhook.Key
	given           string // the app's WebhookSecret, if it is not derived
}

// New checks c and reports all faults at once. It starts nothing: deliveries begin with Run. With InsecureKeyInStore
// it asks the Store for the key, for at most ten seconds.
//
// It assembles exported parts: who needs another arrangement begins with a copy of its body.
func New(c Config) (*Server, error) {
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g, err := guard.New(guard.Options{Allow: c.AllowWebhooksTo})
	if err != nil {
		err = fmt.Errorf("authz: AllowWebhooksTo: %w", err)
	}
	faults := errors.Join(err, c.check())
	st, key := c.Store, c.Key
	if st == nil {
		st = store.NewMemory()
	}
	if key.IsZero() && faults == nil {
		if key, err = makeKey(st, c.Store != nil); err != nil {
			return nil, err
		}
	}
	if key.IsZero() {
		key = grant.NewSecret(strings.Repeat("-", 32)) // only to hear of the engine's faults as well
	}
	apps := make([]grant.App, len(c.Apps))
	for i, a := range c.Apps {
		apps[i] = a.kept()
	}
	catalog := c.Catalog
	if catalog == nil {
		catalog = scope.BuiltIn()
	}
	engine, err := grant.NewEngine(grant.Config{
		Store: st, Key: key, Sealing: c.Sealing, Apps: apps, Triggers: c.Triggers, Catalog: catalog,
		Check: func(apps []grant.App, triggers []grant.Trigger) error {
			return errors.Join(checkApps(g, apps, triggers), c.checkStateless(triggers))
		},
		Permit: c.Permit, Observe: c.Observe, Now: c.Now, KeepLedger: c.KeepLedger,
	})
	signer, err2 := c.signer(key)
	if faults = errors.Join(faults, err, err2); faults != nil {
		return nil, faults
	}
	access, err := hkdf.Key(sha256.New, []byte(key.Reveal()), nil, "behest access token", sha256.Size)
	if err != nil {
		return nil, err
	}
	nonces, err := hkdf.Key(sha256.New, []byte(key.Reveal()), nil, "behest dpop nonce", sha256.Size)
	if err != nil {
		return nil, err
	}
	v := &views{engine: engine, key: key, access: access}
	first, err := v.make(&grant.Config{Apps: apps}, nil) // until the store is asked
	if err != nil {
		return nil, err
	}
	v.last.Store(first)
	clients := newClients()
	clients.follow, clients.Store, clients.Now, clients.Audience = v.roster, st, c.Now, []string{c.Issuer}
	now := c.Now
	if now == nil {
		now = time.Now
	}
	prefix := c.Prefix
	if prefix == "" {
		prefix = "/oauth2"
	}
	s := &Server{engine: engine, views: v, issuer: c.Issuer, wake: newWakeup(), waker: c.Waker, guard: g, store: st, now: now, log: log}
	s.wake.pace(c.Triggers)
	if s.waker == nil {
		s.waker, _ = st.(Waker)
	}
	issuer, _ := url.Parse(c.Issuer) // checked above
	proofs := &DPoP{Origin: issuer.Scheme + "://" + issuer.Host, Key: grant.NewSecret(string(nonces)), Store: st, Now: c.Now}
	s.verifier = &Verifier{Engine: engine, Realm: c.Issuer, ResourceMetadata: wellKnown(issuer, resourceMetadata), DPoP: proofs, Log: log}
	s.deliverer = &Deliverer{Engine: engine, Follow: v.targets, Wait: s.wake.wait, Observe: c.Observe, Now: now, Log: log,
		Post: func(ctx context.Context, url string, header http.Header, body []byte) (int, time.Duration, error) {
			answer, err := g.Post(ctx, url, header, body)
			return answer.Status, answer.RetryAfter, err
		}}
	var signIn *AuthorizationEndpoint
	if c.Account != nil {
		signIn = &AuthorizationEndpoint{Engine: engine, Clients: clients, Store: st, Key: key, Issuer: c.Issuer, Account: c.Account, LoginURL: c.LoginURL, Now: now, Log: log}
	}
	s.endpoints = map[string]http.Handler{
		issuer.Path + prefix + "/token":      &TokenEndpoint{Engine: engine, Clients: clients, DPoP: proofs, Store: st, Issuer: c.Issuer, JWT: signer, SignIn: signIn, Now: now, Log: log},
		issuer.Path + prefix + "/introspect": &IntrospectionEndpoint{Engine: engine, Clients: clients, Store: st, Issuer: c.Issuer, SignIn: signIn, Now: now, Log: log},
		issuer.Path + prefix + "/revoke":     &RevocationEndpoint{Engine: engine, Clients: clients, Store: st, SignIn: signIn, Now: now, Log: log},
		issuer.Path + prefix + "/use":        &UseEndpoint{Engine: engine, Clients: clients, Log: log},
		issuer.Path + prefix + "/grants":     &GrantsEndpoint{Engine: engine, Clients: clients, Store: st, Wait: s.wake.wait, Now: now, Log: log},
		// RFC 8414 §3.1: the well-known part goes before the issuer's path.
		"/.well-known/oauth-authorization-server" + issuer.Path: &MetadataEndpoint{Issuer: c.Issuer, Prefix: prefix, Resources: []string{c.Issuer}, JWKS: signer != nil, SignIn: signIn != nil},
		resourceMetadata + issuer.Path:                          &ResourceMetadataEndpoint{Resource: c.Issuer, Issuer: c.Issuer, DPoP: true},
	}
	for path := range s.endpoints {
		if below, ok := strings.CutPrefix(path, issuer.Path+prefix+"/"); ok {
			clients.Audience = append(clients.Audience, c.Issuer+prefix+"/"+below)
		}
	}
	if signIn != nil {
		s.endpoints[issuer.Path+prefix+"/authorize"] = signIn
	}
	if signer != nil {
		s.endpoints[issuer.Path+prefix+"/jwks"] = signer
	}
	return s, nil
}

// signer is nil if nobody is to verify tokens alone.
func (c *Config) signer(key grant.Secret) (*JWTSigner, error) {
	keys := c.JWTKeys
	if c.JWTAudience == "" {
		return nil, nil
	}
	if len(keys) == 0 {
		seed, err := hkdf.Key(sha256.New, []byte(key.Reveal()), nil, "behest JWT signing", ed25519.SeedSize)
		if err != nil {
			return nil, err
		}
		keys = []grant.Secret{grant.NewSecret(string(seed))}
	}
	return NewJWTSigner(c.Issuer, c.JWTAudience, keys)
}

// makeKey makes a key for this process, or the one that all who share the store use.
func makeKey(st store.Store, shared bool) (grant.Secret, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	if !shared {
		return grant.NewSecret(string(raw)), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	const kind, id = "key", "config.root"
	_, err := st.Apply(ctx, time.Time{}, []store.Op{store.Put(store.Record{Kind: kind, ID: id, Data: raw})})
	if err != nil {
		return grant.Secret{}, fmt.Errorf("authz: the key in the store: %w", err)
	}
	found, err := st.Get(ctx, kind, id) // ours, or that of who was first
	if err != nil {
		return grant.Secret{}, fmt.Errorf("authz: the key in the store: %w", err)
	}
	if len(found) != 1 || len(found[0].Data) != len(raw) {
		return grant.Secret{}, fmt.Errorf("authz: record %s %s is not a key", kind, id)
	}
	return grant.NewSecret(string(found[0].Data)), nil
}

// deriveHook gives each app keys of its own: what is signed for one proves nothing to another.
func deriveHook(root grant.Secret, a App) (hook, error) {
	material, err := hkdf.Key(sha256.New, []byte(root.Reveal()), nil, "behest webhook "+a.ID, 64)
	if err != nil {
		return hook{}, err
	}
	signing, err := webhook.ParseKey("whsk_" + base64.StdEncoding.EncodeToString(ed25519.NewKeyFromSeed(material[32:])))
	if err != nil {
		return hook{}, err
	}
	text := a.WebhookSecret.Reveal()
	if text == "" {
		text = "whsec_" + base64.StdEncoding.EncodeToString(material[:32])
	}
	secret, err := webhook.ParseKey(text)
	return hook{secret, signing, a.WebhookSecret.Reveal()}, err
}

// Issuer is the server's own URL.
func (s *Server) Issuer() string { return s.issuer }

// Engine is what issues and revokes underneath: Grants, Decide, Revoke, RevokeApp, RevokeAccount, Ledger, Name.
func (s *Server) Engine() *grant.Engine { return s.engine }

// WebhookSecret is the key that signs an app's pushes with v1: "whsec_…", to be given to that app and to nobody else.
// Zero for an app that does not exist. It asks the store for changes, for at most two seconds, if nobody did lately.
func (s *Server) WebhookSecret(app string) grant.Secret {
	if h, ok := s.views.latest(context.Background()).hooks[app]; ok {
		return grant.NewSecret(h.secret.Reveal())
	}
	return grant.Secret{}
}

// WebhookKey is the public key that verifies an app's pushes by v1a: "whpk_…". Every app has its own. Empty for an
// app that does not exist.
func (s *Server) WebhookKey(app string) string {
	if h, ok := s.views.latest(context.Background()).hooks[app]; ok {
		return h.signing.Public().Reveal()
	}
	return ""
}

// Routes registers the endpoints with exact patterns of method and path, such as "POST /oauth2/token", which stand
// beside "GET /" and "GET /{user}/{repo}" in a http.ServeMux. Other methods are registered too, and refused:
// otherwise a host's own pattern would answer GET /oauth2/token.
func (s *Server) Routes(register func(pattern string, h http.Handler)) {
	paths := make([]string, 0, len(s.endpoints))
	for path := range s.endpoints {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			register(method+" "+path, s.endpoints[path])
		}
	}
}

// Run delivers pushes, writes refusals to the ledger within a second, looks each second whether another server has
// changed the configuration, and purges what is over, until ctx is done. Then it breaks off deliveries that take longer
// than two seconds more, writes what is left to write, for which it takes five seconds at most, and returns nil. Several
// servers that share a store may each Run. Call it once for a Server. Long polls are requests, and end with theirs.
//
// It purges every minute, one of all servers that share the store, at most 500 records at a time. How long what is
// kept is in package grant, under Retention; tokens of client_credentials, which live ten minutes, and sign-ins go at
// their end, and the IDs of assertions a minute after theirs.
//
// A store that is away ends nothing: each call gives up after ten seconds at most, is tried again until the store is
// back, and the log hears of it when it begins, every ten seconds, and when it is over.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.deliverer.Run(ctx) })
	wg.Go(func() { s.look(ctx) })
	if s.waker != nil {
		wg.Go(func() { listen(ctx, s.waker, s.wake, s.log) })
	}
	wg.Go(func() {
		refusals := &outage{what: "refusals are not yet in the ledger", log: s.log}
		every(ctx, flushEvery, func() { s.flush(ctx, refusals) })
		s.flush(context.WithoutCancel(ctx), refusals)
	})
	wg.Go(func() {
		purges := &outage{what: "purge", log: s.log}
		p := &purger{engine: s.engine, store: s.store, now: s.now}
		every(ctx, purgeEvery, func() {
			if err := p.run(ctx); ctx.Err() == nil {
				purges.note(ctx, err)
			}
		})
	})
	wg.Wait()
	s.guard.Close()
	return nil
}

const (
	flushEvery = 500 * time.Millisecond
	// storeTimeout bounds what Run waits for in the store: one that hangs is tried again, like one that is away.
	storeTimeout = 5 * time.Second
)

func (s *Server) flush(ctx context.Context, refusals *outage) {
	within, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := s.engine.Flush(within); ctx.Err() == nil {
		refusals.note(ctx, err)
	}
}

// look looks for changes of the configuration, at once and then each second, so that no call has to: each goes by a
// look of the last 3 s.
func (s *Server) look(ctx context.Context) {
	var paced *view
	away := &outage{what: "the configuration cannot be read; in 3 s nothing is let through", log: s.log}
	look := func() {
		err := s.engine.Look(ctx)
		if err == nil {
			if v := s.views.latest(ctx); v != paced {
				s.wake.pace(v.of.Triggers)
				paced = v
			}
		}
		if ctx.Err() == nil {
			away.note(ctx, err)
		}
	}
	look()
	every(ctx, time.Second, look)
}

// every calls f after each interval until ctx is done.
func every(ctx context.Context, interval time.Duration, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// Wake makes deliveries and long polls look for new grants at once, such as after the commit of a transaction in
// which events were emitted. Without it, and without a Waker that hears of the commit, they look every 250 ms.
func (s *Server) Wake() { s.wake.wake("") }

// In returns the same server over another store, such as one that writes within the caller's transaction, for Emit,
// Decide, Use, Prepare, Require and RequireFunc: call Wake on the server itself after the commit. The endpoints and Run stay
// with the Config's store, and so does the question which apps and triggers there are: give that store a handle
// (*sql.DB) of its own, or transactions that wait for each other take all connections, and none gets its answer.
func (s *Server) In(st store.Store) *Server {
	in := *s
	in.engine = s.engine.In(st)
	v := *s.verifier
	v.Engine, in.verifier = in.engine, &v
	in.wake = newWakeup() // nobody can see yet what is written there
	return &in
}
