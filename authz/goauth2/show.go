package goauth2

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/models"

	"github.com/behest-go/behest/authz"
)

// Show is middleware for behind Require or RequireFunc, of a server or of an [authz.Remote]: it lets go-oauth2 see the delegation that Require has
// found. In the handler, ValidationBearerToken of a wrapped server then answers for this request's token, and for no
// other, with the account as UserID, the app as ClientID, and as Scope what this request may do and nothing more. The
// use was spent by Require; looking at it spends nothing.
//
// Without Require before it, it shows nothing. In every handler that is not behind Show, a delegation token is
// ErrInvalidAccessToken to the server. [authz.FromContext] tells a delegation from a user's own token.
func Show(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := authz.FromContext(r.Context())
		// Require takes its token from the one Authorization header.
		if header := r.Header["Authorization"]; ok && len(header) == 1 {
			_, token, _ := strings.Cut(header[0], " ")
			s := &shown{sha256.Sum256([]byte(strings.TrimLeft(token, " "))), d}
			r = r.WithContext(context.WithValue(r.Context(), shownKey{}, s))
		}
		next.ServeHTTP(w, r)
	})
}

type shownKey struct{}

// A shown is a delegation and the hash of its token.
type shown struct {
	token [sha256.Size]byte
	d     *authz.Delegation
}

// A border is a manager that never hears of Behest's codes and tokens.
type border struct{ oauth2.Manager }

func apart(m oauth2.Manager) oauth2.Manager {
	if _, ok := m.(*border); ok {
		return m
	}
	return &border{m}
}

// behests are all that begins like Behest's secrets: bhst_ and bhsc_, and whatever else there may be.
func behests(secret string) bool {
	return len(secret) >= 5 && secret[:2] == "bh" && secret[4] == '_'
}

// LoadAccessToken implements oauth2.Manager.
func (b *border) LoadAccessToken(ctx context.Context, access string) (oauth2.TokenInfo, error) {
	s, ok := ctx.Value(shownKey{}).(*shown)
	if ok {
		hash := sha256.Sum256([]byte(access))
		ok = subtle.ConstantTimeCompare(hash[:], s.token[:]) == 1
	}
	switch {
	case !ok && behests(access):
		return nil, errors.ErrInvalidAccessToken
	case !ok: // theirs; or a JWT of Behest's, which their store does not know
		return b.Manager.LoadAccessToken(ctx, access)
	}
	ti := models.NewToken()
	ti.SetClientID(s.d.App)
	ti.SetUserID(s.d.Account)
	ti.SetScope(s.d.Scope.String())
	ti.SetAccess(access)
	ti.SetAccessCreateAt(s.d.IssuedAt)
	ti.SetAccessExpiresIn(s.d.NotAfter.Sub(s.d.IssuedAt))
	return ti, nil
}

// notACode stands for a code of Behest, so that theirs is not told it and yet judges the client first.
const notACode = "a code of Behest"

// GenerateAccessToken implements oauth2.Manager.
func (b *border) GenerateAccessToken(ctx context.Context, gt oauth2.GrantType, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if behests(tgr.Code) {
		other := *tgr
		other.Code = notACode
		tgr = &other
	}
	return b.Manager.GenerateAccessToken(ctx, gt, tgr)
}

// RefreshAccessToken implements oauth2.Manager.
func (b *border) RefreshAccessToken(ctx context.Context, tgr *oauth2.TokenGenerateRequest) (oauth2.TokenInfo, error) {
	if behests(tgr.Refresh) {
		return nil, errors.ErrInvalidRefreshToken
	}
	return b.Manager.RefreshAccessToken(ctx, tgr)
}

// LoadRefreshToken implements oauth2.Manager.
func (b *border) LoadRefreshToken(ctx context.Context, refresh string) (oauth2.TokenInfo, error) {
	if behests(refresh) {
		return nil, errors.ErrInvalidRefreshToken
	}
	return b.Manager.LoadRefreshToken(ctx, refresh)
}

// RemoveAccessToken implements oauth2.Manager: it must not look as if it had removed what is not there.
func (b *border) RemoveAccessToken(ctx context.Context, access string) error {
	if behests(access) {
		return errors.ErrInvalidAccessToken
	}
	return b.Manager.RemoveAccessToken(ctx, access)
}

// RemoveRefreshToken implements oauth2.Manager.
func (b *border) RemoveRefreshToken(ctx context.Context, refresh string) error {
	if behests(refresh) {
		return errors.ErrInvalidRefreshToken
	}
	return b.Manager.RemoveRefreshToken(ctx, refresh)
}
