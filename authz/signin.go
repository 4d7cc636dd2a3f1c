package authz

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// kindSignIn is the kind of a sign-in: one record for all that came of one consent, in the aggregate of the account,
// who is its Owner. It begins with a code that waits, and then has the refresh token that is good and the access tokens
// that are, all of them as SHA-256: each step is one Put of this record, so of many that take the same step one wins,
// and to delete it ends all of it. NotAfter is the code's end, and then that of the refresh token.
const kindSignIn = "signin"

const (
	authCodePrefix      = "bhac_"
	signInAccessPrefix  = "bhsa_"
	signInRefreshPrefix = "bhsr_"

	authCodeLife     = time.Minute
	signInAccessLife = time.Hour
	signInIdle       = 30 * 24 * time.Hour  // of the refresh token, from its making
	signInLife       = 365 * 24 * time.Hour // of all together, from the consent
	// signInGrace is how long what was used up is taken for a retry, or for one of several at once, and not for a thief.
	signInGrace = 10 * time.Second
	// maxSignInAccess bounds the record; the access tokens that end first give way.
	maxSignInAccess = 16
	// maxRotations bounds what is remembered of the grace.
	maxRotations = 16

	// scopeProfile is all that may be asked for at sign-in: the account's own name.
	scopeProfile = "profile"
)

// A signIn is what lies in the record. Times are microseconds.
type signIn struct {
	Scope    string    `json:"scope,omitempty"`
	At       int64     `json:"at"`       // the consent
	Versions [2]uint64 `json:"versions"` // of what revokes it, at the consent

	Code        string `json:"code"` // its hash, also when it was redeemed
	RedirectURI string `json:"redirect_uri"`
	Challenge   string `json:"challenge"`          // S256
	Redeemed    int64  `json:"redeemed,omitempty"` // zero: the code waits

	Refresh    string         `json:"refresh,omitempty"` // the hash of the one that is good
	Generation uint64         `json:"generation,omitempty"`
	Used       int64          `json:"used,omitempty"`    // when the last tokens were made
	Rotated    []int64        `json:"rotated,omitempty"` // when those before it were used, newest first, as long as that is in the grace
	Access     []signInAccess `json:"access,omitempty"`
}

type signInAccess struct {
	Hash string `json:"hash"`
	At   int64  `json:"at"`
	End  int64  `json:"end"`
}

// signIns keeps them.
type signIns struct {
	engine *grant.Engine
	store  store.Store
	now    func() time.Time
	log    *slog.Logger
	aead   cipher.AEAD
	form   []byte // authenticates the form of consent
}

// newSignIns derives keys that never change. They make nobody anything: the seal keeps the account's place from apps,
// and forgeries from the store, which decides by the hash of the secret.
func newSignIns(engine *grant.Engine, st store.Store, key grant.Secret, now func() time.Time, log *slog.Logger) (*signIns, error) {
	material, err := hkdf.Key(sha256.New, []byte(key.Reveal()), nil, "behest sign-in", 64)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(material[:32])
	return &signIns{engine, st, now, log, aead, material[32:]}, err
}

// A ticket is what a code or a token of a sign-in carries: where its record is, and the secret whose hash is there.
type ticket struct {
	secret     [32]byte
	id         string // of the record
	generation uint64 // of a refresh token; else 0
}

func (t *ticket) hash() string {
	sum := sha256.Sum256(t.secret[:])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func newTicket(id string, generation uint64) *ticket {
	t := &ticket{id: id, generation: generation}
	_, _ = rand.Read(t.secret[:]) // never fails
	return t
}

var ticketEncoding = base64.RawURLEncoding.Strict()

// seal makes text of a ticket. What was sealed with one prefix opens with no other.
func (s *signIns) seal(prefix string, t *ticket) string {
	plain := append(t.secret[:], make([]byte, 8, 8+len(t.id))...)
	binary.BigEndian.PutUint64(plain[len(t.secret):], t.generation)
	plain = append(plain, t.id...)
	raw := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	_, _ = rand.Read(raw) // never fails
	return prefix + ticketEncoding.EncodeToString(s.aead.Seal(raw, raw, plain, []byte(prefix)))
}

func (s *signIns) open(prefix, text string) (*ticket, bool) {
	text, ok := strings.CutPrefix(text, prefix)
	if !ok || len(text) > 512 || strings.ContainsAny(text, "\r\n") { // which the decoder would skip
		return nil, false
	}
	raw, err := ticketEncoding.DecodeString(text)
	if err != nil || len(raw) < chacha20poly1305.NonceSizeX {
		return nil, false
	}
	plain, err := s.aead.Open(nil, raw[:chacha20poly1305.NonceSizeX], raw[chacha20poly1305.NonceSizeX:], []byte(prefix))
	t := &ticket{}
	if err != nil || len(plain) < len(t.secret)+8 {
		return nil, false
	}
	n := copy(t.secret[:], plain)
	t.generation, t.id = binary.BigEndian.Uint64(plain[n:]), string(plain[n+8:])
	return t, true
}

// A kept is a sign-in with its record.
type kept struct {
	store.Record
	signIn
}

var errNoSignIn = errors.New("authz: no such sign-in")

// read returns the sign-in of a ticket, if it is that client's; for any client if that is empty. What is not there, is
// another's or was revoked is errNoSignIn, after the same work.
func (s *signIns) read(ctx context.Context, t *ticket, client string) (*kept, error) {
	found, err := s.store.Get(ctx, kindSignIn, t.id)
	if err != nil {
		return nil, fmt.Errorf("authz: reading a sign-in: %w", err)
	}
	if len(found) == 0 || client != "" && found[0].App != client {
		return nil, errNoSignIn
	}
	k := &kept{Record: found[0]}
	if err := json.Unmarshal(k.Data, &k.signIn); err != nil {
		return nil, fmt.Errorf("authz: record %s %s: %w", k.Kind, k.ID, err)
	}
	return k, nil
}

// holds is nil for a sign-in that neither the account nor a change of the apps has ended; else errNoSignIn, or what the store said.
func (s *signIns) holds(ctx context.Context, k *kept) error {
	switch err := s.engine.Registered(ctx, k.App, time.UnixMicro(k.At)); {
	case errors.Is(err, grant.ErrRevoked):
		return errNoSignIn
	case err != nil:
		return fmt.Errorf("authz: %w", err)
	}
	versions, err := s.versions(ctx, k.Owner, k.App)
	if err == nil && versions != k.Versions {
		err = errNoSignIn
	}
	return err
}

func (s *signIns) versions(ctx context.Context, account, app string) (v [2]uint64, err error) {
	_, kind, ids := s.engine.SignInRecords(account, app)
	found, err := s.store.Get(ctx, kind, ids[:]...)
	if err != nil {
		return v, fmt.Errorf("authz: reading what was revoked: %w", err)
	}
	for _, r := range found {
		v[slices.Index(ids[:], r.ID)] = r.Version
	}
	return v, nil
}

// write puts the sign-in in its place, if it is still as it was read, and nothing has revoked it.
func (s *signIns) write(ctx context.Context, now time.Time, k *kept) (bool, error) {
	data, err := json.Marshal(k.signIn)
	if err != nil {
		return false, err
	}
	k.Data = data
	_, kind, ids := s.engine.SignInRecords(k.Owner, k.App)
	out, err := s.store.Apply(ctx, now, []store.Op{
		store.Check(kind, ids[0], k.Versions[0]),
		store.Check(kind, ids[1], k.Versions[1]),
		store.Put(k.Record),
	})
	if err != nil {
		return false, fmt.Errorf("authz: writing a sign-in: %w", err)
	}
	return out.Applied(), nil
}

// end removes all that came of one consent: from then on none of its codes and tokens is good.
func (s *signIns) end(ctx context.Context, id string) error {
	_, err := s.store.Apply(ctx, clock(s.now), []store.Op{store.Delete(kindSignIn, id, store.AnyVersion)})
	if err != nil {
		return fmt.Errorf("authz: ending a sign-in: %w", err)
	}
	return nil
}

// begin keeps the account's consent, and returns the code that goes to the app.
func (s *signIns) begin(ctx context.Context, account, client, redirectURI, scope, challenge string) (string, error) {
	now := clock(s.now)
	versions, err := s.versions(ctx, account, client)
	if err != nil {
		return "", err
	}
	aggregate, _, _ := s.engine.SignInRecords(account, client)
	t := newTicket(aggregate+"."+rand.Text(), 0)
	k := &kept{
		store.Record{Kind: kindSignIn, ID: t.id, Owner: account, App: client, NotAfter: now.Add(authCodeLife)},
		signIn{Scope: scope, At: now.UnixMicro(), Versions: versions, Code: t.hash(), RedirectURI: redirectURI, Challenge: challenge},
	}
	switch ok, err := s.write(ctx, now, k); {
	case err != nil:
		return "", err
	case !ok:
		return "", errors.New("authz: beginning a sign-in: it was revoked meanwhile")
	}
	return s.seal(authCodePrefix, t), nil
}

// issued is what the token endpoint gives away.
type issued struct {
	*kept
	access, refresh string
	at              time.Time
	life            time.Duration
}

// redeem takes a code, once (RFC 6749 §4.1.3).
func (s *signIns) redeem(ctx context.Context, client, code, redirectURI, verifier string) (*issued, error) {
	t, ok := s.open(authCodePrefix, code)
	if !ok { // P9
		return nil, invalidGrant("no such code")
	}
	k, err := s.read(ctx, t, client)
	if err == nil && !same(t.hash(), k.Code) {
		err = errNoSignIn
	}
	if err == nil {
		err = s.holds(ctx, k)
	}
	switch {
	case errors.Is(err, errNoSignIn):
		return nil, invalidGrant("no such code")
	case err != nil:
		return nil, err
	case !same(redirectURI, k.RedirectURI):
		return nil, invalidGrant("redirect_uri is not that of the authorization request")
	case !challenged(verifier, k.Challenge):
		return nil, invalidGrant("code_verifier is not what code_challenge was made of")
	}
	now := clock(s.now)
	if k.Redeemed != 0 {
		return nil, s.again(ctx, k, k.Redeemed, now, "the code was redeemed before")
	}
	if !now.Before(k.NotAfter) {
		return nil, invalidGrant("the code has expired")
	}
	k.Redeemed = now.UnixMicro()
	return s.issue(ctx, now, k, "the code was redeemed just now")
}

// rotate takes a refresh token, once, and gives another in its place (RFC 9700 §4.14.2). A scope may not ask for more than
// was granted; with one word at most there is no less to ask for, since none at all means the same (RFC 6749 §6).
func (s *signIns) rotate(ctx context.Context, client, refresh, scope string) (*issued, error) {
	t, k, err := s.refreshable(ctx, client, refresh)
	if err != nil {
		return nil, err
	}
	now := clock(s.now)
	if t.generation < k.Generation { // sealed by us, so it was good once
		used := int64(0)
		if i := k.Generation - 1 - t.generation; i < uint64(len(k.Rotated)) {
			used = k.Rotated[i]
		}
		return nil, s.again(ctx, k, used, now, "the refresh token was used before")
	}
	asked, ok := signInScope(scope)
	switch {
	case !now.Before(k.NotAfter):
		return nil, invalidGrant("the refresh token has expired")
	case !ok || asked != "" && asked != k.Scope:
		return nil, &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "scope is more than was granted"}
	}
	k.Rotated = append([]int64{now.UnixMicro()}, k.Rotated...)
	return s.issue(ctx, now, k, "the refresh token was used just now")
}

// refreshable is the sign-in of a refresh token that is, or was, good.
func (s *signIns) refreshable(ctx context.Context, client, refresh string) (*ticket, *kept, error) {
	t, ok := s.open(signInRefreshPrefix, refresh)
	if !ok { // P9
		return nil, nil, invalidGrant("no such refresh token")
	}
	k, err := s.read(ctx, t, client)
	if err == nil && (t.generation > k.Generation || t.generation == k.Generation && !same(t.hash(), k.Refresh)) {
		err = errNoSignIn
	}
	if err == nil {
		err = s.holds(ctx, k)
	}
	if errors.Is(err, errNoSignIn) {
		err = invalidGrant("no such refresh token")
	}
	return t, k, err
}

// again is the answer to what was used up at that time: a client that did not hear the answer, or asked twice at once, is
// only refused. Later than that it is a copy, in whose hands nobody knows, and all of the sign-in ends.
func (s *signIns) again(ctx context.Context, k *kept, used int64, now time.Time, description string) error {
	if now.Sub(time.UnixMicro(used)) <= signInGrace {
		return invalidGrant(description + ", a moment ago")
	}
	if err := s.end(ctx, k.ID); err != nil {
		return err
	}
	if s.log != nil {
		s.log.WarnContext(ctx, "a sign-in has ended: what was used up came again", "app", k.App, "what", description)
	}
	return invalidGrant(description + ": the sign-in has ended")
}

// issue writes new tokens. Who was slower is told so.
func (s *signIns) issue(ctx context.Context, now time.Time, k *kept, slower string) (*issued, error) {
	end := time.UnixMicro(k.At).Add(signInLife).UTC()
	if idle := now.Add(signInIdle); idle.Before(end) {
		end = idle
	}
	life := min(signInAccessLife, end.Sub(now))
	access, refresh := newTicket(k.ID, 0), newTicket(k.ID, k.Generation+1)
	k.NotAfter, k.Refresh, k.Generation, k.Used = end, refresh.hash(), refresh.generation, now.UnixMicro()
	k.Rotated = slices.DeleteFunc(k.Rotated, func(at int64) bool { return now.Sub(time.UnixMicro(at)) > signInGrace })
	k.Rotated = k.Rotated[:min(len(k.Rotated), maxRotations)]
	k.Access = slices.DeleteFunc(k.Access, func(a signInAccess) bool { return a.End <= now.UnixMicro() })
	k.Access = append(k.Access, signInAccess{access.hash(), now.UnixMicro(), now.Add(life).UnixMicro()})
	k.Access = k.Access[max(0, len(k.Access)-maxSignInAccess):]
	ok, err := s.write(ctx, now, k)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, invalidGrant(slower)
	}
	return &issued{k, s.seal(signInAccessPrefix, access), s.seal(signInRefreshPrefix, refresh), now, life}, nil
}

// access is the sign-in of an access token that is good, and what there is of the token.
func (s *signIns) access(ctx context.Context, token string) (*kept, *signInAccess, error) {
	t, ok := s.open(signInAccessPrefix, token)
	if !ok { // P9
		return nil, nil, errNoSignIn
	}
	k, err := s.read(ctx, t, "")
	if err != nil {
		return nil, nil, err
	}
	now, hash := clock(s.now).UnixMicro(), t.hash()
	i := slices.IndexFunc(k.Access, func(a signInAccess) bool { return same(a.Hash, hash) && now < a.End })
	if i < 0 {
		return nil, nil, errNoSignIn
	}
	return k, &k.Access[i], s.holds(ctx, k)
}

// revoke ends the sign-in that a code or a token of the client is of, whether or not that is still good. What is another's
// is left alone.
func (s *signIns) revoke(ctx context.Context, client, text string) error {
	for _, prefix := range []string{signInRefreshPrefix, signInAccessPrefix, authCodePrefix} {
		t, ok := s.open(prefix, text)
		if !ok {
			continue
		}
		k, err := s.read(ctx, t, client)
		if err == nil {
			err = s.end(ctx, k.ID)
		}
		if errors.Is(err, errNoSignIn) {
			err = nil
		}
		return err
	}
	return nil
}

// ofSignIn reports whether text looks like a code or a token of a sign-in.
func ofSignIn(text string) bool {
	return strings.HasPrefix(text, authCodePrefix) || strings.HasPrefix(text, signInAccessPrefix) || strings.HasPrefix(text, signInRefreshPrefix)
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// challenged reports whether the challenge was made of the verifier: RFC 7636 §4.6, S256 alone.
func challenged(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 || strings.Trim(verifier, unreserved) != "" {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return same(base64.RawURLEncoding.EncodeToString(sum[:]), challenge)
}

const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

// isChallenge reports whether S256 could have made it.
func isChallenge(s string) bool {
	raw, err := ticketEncoding.DecodeString(s)
	return err == nil && len(raw) == sha256.Size && !strings.ContainsAny(s, "\r\n")
}

// signInScope is the scope, each word once. No word but profile may be asked for: none can be an action of a catalog,
// which is in a domain.
func signInScope(text string) (string, bool) {
	scope := ""
	for word := range strings.SplitSeq(text, " ") {
		switch word {
		case "":
		case scopeProfile:
			scope = scopeProfile
		default:
			return "", false
		}
	}
	return scope, true
}

// formToken is good for an hour, for this account and this request alone.
func (s *signIns) formToken(account, request string, now time.Time) string {
	return s.formTokenOf(account, request, now.Add(time.Hour).Unix())
}

func (s *signIns) formTokenOf(account, request string, end int64) string {
	head := binary.BigEndian.AppendUint64(nil, uint64(end))
	mac := hmac.New(sha256.New, s.form)
	mac.Write(head)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(account))))
	mac.Write([]byte(account + request))
	return ticketEncoding.EncodeToString(mac.Sum(head))
}

func (s *signIns) checkForm(token, account, request string, now time.Time) bool {
	raw, err := ticketEncoding.DecodeString(token)
	if err != nil || len(raw) < 8 {
		return false
	}
	end := int64(binary.BigEndian.Uint64(raw))
	return same(token, s.formTokenOf(account, request, end)) && now.Unix() < end
}
