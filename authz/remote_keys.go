package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
)

const (
	jwksLeast   = time.Minute      // how long keys are taken as they are, whatever Cache-Control says
	jwksMost    = time.Hour        // and at most
	jwksDefault = 5 * time.Minute  // when it says nothing
	jwksStale   = 10 * time.Minute // how much longer, while the server does not answer
	jwksAgain   = 30 * time.Second // for an unknown kid keys are asked for at most once in this time
	jwksRetry   = 2 * time.Second  // and after a failure
	jwtLeeway   = time.Minute      // by how much the clocks of two servers may differ
)

// remoteKeys are the public keys of an issuer, remembered for a while. They are asked for by one caller for all who wait.
type remoteKeys struct {
	fetch func(context.Context) (jose.Set, time.Duration, error)
	now   func() time.Time

	mu                 sync.Mutex
	set                jose.Set
	fresh, stale, next time.Time     // good until; good if there is no better, until; nobody asks before
	err                error         // of the last try
	flight             chan struct{} // closed when the one that is under way is over; nil: there is none
}

// get returns the keys. With again they are asked for although they are fresh, if nobody did so lately.
func (k *remoteKeys) get(ctx context.Context, again bool) (jose.Set, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if now.Before(k.fresh) && !again || k.flight == nil && now.Before(k.next) {
		return k.have(now)
	}
	if k.flight != nil {
		if !again && now.Before(k.stale) { // nobody waits for a server that may be away
			return k.set, nil
		}
		flight := k.flight
		k.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
		}
		k.mu.Lock()
		return k.have(k.now())
	}
	k.ask(ctx)
	return k.have(k.now())
}

// ask fetches the keys for all who wait. Meanwhile others have the lock; afterwards the caller has it again, also when
// the transport of somebody's own panicked: then that is one request's end, and the next one asks.
func (k *remoteKeys) ask(ctx context.Context) {
	flight := make(chan struct{})
	k.flight = flight
	var set jose.Set
	var life time.Duration
	err := errors.New("authz: Remote: asking for the keys broke off")
	defer func() {
		k.mu.Lock()
		now := k.now()
		if err == nil && len(set) == 0 && len(k.set) > 0 && now.Before(k.stale) {
			err = errors.New("authz: Remote: the issuer had keys, and seems to have none") // or a proxy leads elsewhere
		}
		k.err, k.flight = err, nil
		if err != nil {
			k.next = now.Add(jwksRetry)
		} else {
			k.set, k.fresh, k.next = set, now.Add(min(max(life, jwksLeast), jwksMost)), now.Add(jwksAgain)
			k.stale = k.fresh.Add(jwksStale)
		}
		close(flight)
	}()
	k.mu.Unlock()
	set, life, err = k.fetch(context.WithoutCancel(ctx))
}

func (k *remoteKeys) have(now time.Time) (jose.Set, error) {
	switch {
	case now.Before(k.stale):
		return k.set, nil
	case k.err != nil:
		return nil, k.err
	}
	return nil, errors.New("authz: Remote: the keys are not here yet")
}

// jwks asks the issuer for its keys. A server that has none has an empty set.
func (m *Remote) jwks(ctx context.Context) (jose.Set, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.jwksURL, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := m.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("authz: Remote: %w", err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, 0, nil
	default:
		return nil, 0, fmt.Errorf("authz: Remote: GET %s answered %d", m.jwksURL, res.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxRemoteAnswer+1))
	if err != nil {
		return nil, 0, fmt.Errorf("authz: Remote: the keys break off: %w", err)
	}
	set, err := jose.ParseSet(text) // bounded there, too
	if err != nil {
		return nil, 0, fmt.Errorf("authz: Remote: GET %s: %w", m.jwksURL, err)
	}
	return set, maxAge(res.Header.Values("Cache-Control")), nil
}

// maxAge reads max-age of RFC 9111 §5.2.2; what must not be kept is kept for as short as possible.
func maxAge(header []string) time.Duration {
	age := jwksDefault
	for directive := range strings.SplitSeq(strings.ToLower(strings.Join(header, ",")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store", "no-cache":
			return 0
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				age = time.Duration(seconds) * time.Second
			}
		}
	}
	return age
}

// looksLikeJWT is asked before anything is read.
func looksLikeJWT(token string) bool { return strings.Count(token, ".") == 2 }

// verify judges a JWT access token (RFC 9068 §4) without the server, but for its keys.
func (m *Remote) verify(ctx context.Context, c Call) (*Delegation, error) {
	rules := jose.Rules{Types: []string{jwtType}, MaxBytes: maxRemoteToken} // §4: no other typ
	jws, err := rules.Parse(c.Token)
	if err != nil {
		return nil, notValid(err)
	}
	keys, err := m.keys.get(ctx, false)
	if err != nil {
		return nil, &notOurs{err}
	}
	payload, err := jws.Verify(keys)
	if errors.Is(err, jose.ErrNoKey) { // perhaps a new one
		if keys, err = m.keys.get(ctx, true); err != nil {
			return nil, &notOurs{err}
		}
		payload, err = jws.Verify(keys)
	}
	if err != nil {
		return nil, notValid(err)
	}
	d, err := m.judge(payload, c)
	if err != nil && grant.Reason(err) == "" {
		return nil, notValid(err)
	}
	return d, err
}

// notValid is for strangers: they get one answer, whatever it was.
func notValid(err error) error { return fmt.Errorf("%w: not a valid JWT: %s", grant.ErrUnknown, err) }

// judge looks at what the issuer has signed. Its errors are grant's for a token that is real.
func (m *Remote) judge(payload []byte, c Call) (*Delegation, error) {
	claims, err := jose.ParseClaims(payload)
	if err != nil {
		return nil, err
	}
	var client, granted, grantID, domain, operation, event string
	for _, claim := range []struct {
		name string
		into *string
	}{{"client_id", &client}, {"scope", &granted}, {"grant_id", &grantID}, {"domain", &domain}, {"operation", &operation}, {"event", &event}} {
		if there, err := claims.Get(claim.name, claim.into); err != nil || !there {
			return nil, fmt.Errorf("%s is missing or no string", claim.name)
		}
	}
	var actor jwtActor
	acts, err := claims.Get("act", &actor)
	bound, _ := claims.Get("cnf", new(json.RawMessage))
	now := m.now()
	forUs := false
	for _, audience := range claims.Audience {
		forUs = forUs || audience == m.resource
	}
	switch {
	case err != nil || acts && actor.Subject != client:
		return nil, errors.New("another app acts")
	case claims.Issuer != m.issuer:
		return nil, errors.New("another issuer")
	case !forUs:
		return nil, errors.New("another audience")
	case claims.Subject == "" || claims.ID == "":
		return nil, errors.New("sub or jti is missing")
	case claims.Expires.IsZero() || claims.IssuedAt.IsZero():
		return nil, errors.New("exp or iat is missing")
	case claims.Expires.Sub(claims.IssuedAt) > maxJWTLife:
		return nil, fmt.Errorf("a life of more than %v", maxJWTLife)
	case bound:
		return nil, errors.New("bound to a key, of which nobody asks a proof here")
	case !now.Before(claims.Expires):
		return nil, fmt.Errorf("%w: at %s", grant.ErrExpired, claims.Expires.UTC().Format(time.RFC3339))
	}
	if err := claims.Live(now, jwtLeeway); err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{"account": claims.Subject, "app": client, "domain": domain, "granted": granted, "grant": grantID,
		"operation": operation, "event": event, "iat": claims.IssuedAt.Unix(), "exp": claims.Expires.Unix()})
	if err != nil {
		return nil, err
	}
	d := new(Delegation)
	if err := json.Unmarshal(text, d); err != nil {
		return nil, err
	}
	if d.Domain != d.GrantedIn() {
		return nil, errors.New("domain is not that of scope")
	}
	if err := d.Granted().Allows(c.Want); err != nil {
		return nil, err
	}
	d.Domain, d.Scope = c.Want.Domain(), c.Want
	return d, nil
}
