package goauth2

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/models"
)

// Roles of secrets, so that one is never taken for another.
const (
	roleCode    = "code"
	roleAccess  = "access"
	roleRefresh = "refresh"
)

// stored is the form in which a secret is kept.
func stored(role, secret string) string {
	if secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(secret))
	return role + "-sha256-" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// toRemove is the stored form of what a manager wants removed. It may be what the manager has read: its stored form
// already. To Get that means nothing: who has read the database has no token.
func toRemove(role, given string) string {
	if hash, ok := strings.CutPrefix(given, role+"-sha256-"); ok && len(hash) == base64.RawURLEncoding.EncodedLen(sha256.Size) {
		return given
	}
	return stored(role, given)
}

// tokens is a token store that keeps no secret in theirs, consumes codes in the book, and writes down there what is of
// one family.
type tokens struct {
	theirs   oauth2.TokenStore
	book     *book
	notFound func(error) bool
}

// A flow is one call of the manager, on its way through go-oauth2's manager to the token store.
type flow struct {
	family  string // of what is made now; empty: a new one
	version uint64 // of the family's record; 0: it has none
	removed map[string]bool
	made    *models.Token // in its stored form
}

type flowKey struct{}

func (f *flow) in(ctx context.Context) context.Context { return context.WithValue(ctx, flowKey{}, f) }

func flowOf(ctx context.Context) *flow {
	if f, ok := ctx.Value(flowKey{}).(*flow); ok {
		return f
	}
	return &flow{}
}

// errSameToken is for generators that make one token twice, such as go-oauth2's JWTs, which say the second and no
// more. Nothing a client did: the next second it gets another.
var errSameToken = errors.New("goauth2: the access token that was generated exists already; give it a jti")

// Create implements oauth2.TokenStore. Nothing that it was told is of use to anybody before it returns, for the client
// is answered later: a crash in between leaves rubbish and no harm.
func (t *tokens) Create(ctx context.Context, info oauth2.TokenInfo) error {
	kept := clone(info)
	kept.Code, kept.Access, kept.Refresh = stored(roleCode, kept.Code), stored(roleAccess, kept.Access), stored(roleRefresh, kept.Refresh)
	f := flowOf(ctx)
	if kept.Code != "" {
		notAfter := kept.CodeCreateAt.Add(kept.CodeExpiresIn)
		// For a day its replay ends what came of it; after that it is unknown.
		ok, err := t.book.put(ctx, kindCode, kept.Code, 0, notAfter.Add(tombstone), mark{Family: kept.Code, Client: kept.ClientID})
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("goauth2: the code that was generated exists already")
		}
		return t.theirs.Create(ctx, kept)
	}
	if strings.Count(info.GetAccess(), ".") == 2 {
		ok, err := t.book.put(ctx, kindAccess, kept.Access, 0, until(kept.AccessCreateAt, kept.AccessExpiresIn), struct{}{})
		if err != nil {
			return err
		}
		if !ok {
			return errSameToken
		}
	}
	if err := t.theirs.Create(ctx, kept); err != nil {
		return err
	}
	f.made = kept
	if kept.Refresh == "" && f.family == "" {
		return nil // a token that stands alone
	}
	return t.enrol(ctx, f)
}

// enrol writes down that what was made is what is alive of its family, unless that is dead.
func (t *tokens) enrol(ctx context.Context, f *flow) error {
	made, id := f.made, f.family
	if id == "" {
		id = newFamily()
	}
	notAfter := until(made.AccessCreateAt, made.AccessExpiresIn)
	if made.Refresh != "" {
		notAfter = until(made.RefreshCreateAt, made.RefreshExpiresIn)
		ok, err := t.book.put(ctx, kindRefresh, made.Refresh, 0, notAfter, mark{Family: id, Client: made.ClientID})
		if err != nil {
			return err
		}
		if !ok { // it is the old one, which has been redeemed
			return errors.Join(errNotRotated, t.remove(ctx, made.Access, made.Refresh))
		}
	}
	ok, err := t.book.put(ctx, kindFamily, id, f.version, notAfter, family{Access: made.Access, Refresh: made.Refresh})
	if err != nil {
		return err
	}
	if !ok { // revoked meanwhile
		return errors.Join(oautherrors.ErrInvalidRefreshToken, t.remove(ctx, made.Access, made.Refresh))
	}
	return nil
}

// errNotRotated is a fault in the set-up: what has been redeemed is of no use to the client any more.
var errNotRotated = errors.New("goauth2: the manager does not rotate refresh tokens: its RefreshingConfig needs IsGenerateRefresh")

// until is the end of a life; zero, like a life of zero, is never.
func until(at time.Time, life time.Duration) time.Time {
	if life == 0 {
		return time.Time{}
	}
	return at.Add(life)
}

// RemoveByCode implements oauth2.TokenStore: go-oauth2's manager calls it when it has found a code good, and goes on
// if there is no error. So this is where one caller wins.
func (t *tokens) RemoveByCode(ctx context.Context, code string) error {
	id := toRemove(roleCode, code)
	m, v, err := t.book.redeem(ctx, kindCode, id)
	if err != nil {
		return err
	}
	if v != won {
		return oautherrors.ErrInvalidAuthorizeCode
	}
	flowOf(ctx).family = m.Family
	return t.theirs.RemoveByCode(ctx, id)
}

// RemoveByAccess implements oauth2.TokenStore.
func (t *tokens) RemoveByAccess(ctx context.Context, access string) error {
	return t.remove(ctx, toRemove(roleAccess, access), "")
}

// RemoveByRefresh implements oauth2.TokenStore.
func (t *tokens) RemoveByRefresh(ctx context.Context, refresh string) error {
	return t.remove(ctx, "", toRemove(roleRefresh, refresh))
}

// remove takes stored forms, and does nothing twice in a flow.
func (t *tokens) remove(ctx context.Context, access, refresh string) error {
	f := flowOf(ctx)
	once := func(id string, remove func(context.Context, string) error) error {
		if id == "" || f.removed[id] {
			return nil
		}
		if err := remove(ctx, id); err != nil && !t.notFound(err) {
			return err
		}
		if f.removed == nil {
			f.removed = map[string]bool{}
		}
		f.removed[id] = true
		return nil
	}
	return errors.Join(once(access, t.theirs.RemoveByAccess), once(refresh, t.theirs.RemoveByRefresh))
}

// GetByCode implements oauth2.TokenStore.
func (t *tokens) GetByCode(ctx context.Context, code string) (oauth2.TokenInfo, error) {
	return t.get(ctx, roleCode, code, t.theirs.GetByCode, oauth2.TokenInfo.GetCode, oauth2.TokenInfo.SetCode)
}

// GetByAccess implements oauth2.TokenStore.
func (t *tokens) GetByAccess(ctx context.Context, access string) (oauth2.TokenInfo, error) {
	return t.get(ctx, roleAccess, access, t.theirs.GetByAccess, oauth2.TokenInfo.GetAccess, oauth2.TokenInfo.SetAccess)
}

// GetByRefresh implements oauth2.TokenStore.
func (t *tokens) GetByRefresh(ctx context.Context, refresh string) (oauth2.TokenInfo, error) {
	return t.get(ctx, roleRefresh, refresh, t.theirs.GetByRefresh, oauth2.TokenInfo.GetRefresh, oauth2.TokenInfo.SetRefresh)
}

// get puts the secret back that was asked for, because the manager compares it. A store that answers with something
// else, such as one that takes capitals for small letters, has not found it.
func (t *tokens) get(ctx context.Context, role, secret string, theirs func(context.Context, string) (oauth2.TokenInfo, error),
	is func(oauth2.TokenInfo) string, set func(oauth2.TokenInfo, string)) (oauth2.TokenInfo, error) {
	if secret == "" {
		return nil, nil
	}
	id := stored(role, secret)
	found, err := theirs(ctx, id)
	switch {
	case err != nil && t.notFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("goauth2: reading the token store: %w", err)
	case isNil(found), is(found) != id:
		return nil, nil
	}
	own := clone(found)
	set(own, secret)
	return own, nil
}

// isNil also knows the nil that a store returns from a variable of its own type.
func isNil(info oauth2.TokenInfo) bool {
	t, ok := info.(*models.Token)
	return info == nil || ok && t == nil
}

// clone makes what every token store knows how to keep, and shares nothing: the manager goes on using what it gives to
// Create, and a store may give out what it keeps.
func clone(info oauth2.TokenInfo) *models.Token {
	c := &models.Token{
		ClientID: info.GetClientID(), UserID: info.GetUserID(), RedirectURI: info.GetRedirectURI(), Scope: info.GetScope(),
		Code: info.GetCode(), CodeChallenge: info.GetCodeChallenge(), CodeChallengeMethod: info.GetCodeChallengeMethod().String(),
		CodeCreateAt: info.GetCodeCreateAt(), CodeExpiresIn: info.GetCodeExpiresIn(),
		Access: info.GetAccess(), AccessCreateAt: info.GetAccessCreateAt(), AccessExpiresIn: info.GetAccessExpiresIn(),
		Refresh: info.GetRefresh(), RefreshCreateAt: info.GetRefreshCreateAt(), RefreshExpiresIn: info.GetRefreshExpiresIn(),
	}
	if e, ok := info.(oauth2.ExtendableTokenInfo); ok {
		c.Extension = maps.Clone(e.GetExtension())
		for name, values := range c.Extension {
			c.Extension[name] = slices.Clone(values)
		}
	}
	return c
}
