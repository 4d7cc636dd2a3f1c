package grant

import (
	"context"
	"errors"
	"fmt"

	"github.com/behest-go/behest/scope"
)

// The errors of this package. Each error it returns wraps one of them, or one of package scope's, or what a
// store or a Permit said; the text says what was wrong, the sentinel says what to answer.
var (
	// ErrInvalid is a fault in an event, a trigger, an app or a call: nothing was written.
	ErrInvalid = errors.New("grant: invalid")
	// errConflict is an event whose operation, ID and account were seen before with other content.
	errConflict = fmt.Errorf("%w: event seen before with other content", ErrInvalid)
	// ErrDenied is the "no" of a Permit: return it, or an error that wraps it. At a use it means that rights have
	// changed since the grant was made; at issue, that no action was left.
	ErrDenied = errors.New("grant: denied")
	// ErrLimited is a trigger that fired too often for one account, or a chain of triggers that is too deep.
	ErrLimited = errors.New("grant: limit reached")
	// ErrUnknown is a code, a token or a grant that is forged, unknown, or somebody else's: strangers get no more than that.
	ErrUnknown = errors.New("grant: unknown")
	// ErrExpired is a real code or token that came too late.
	ErrExpired = errors.New("grant: expired")
	// ErrUsedUp is a code that was redeemed before, or a token with too few uses left.
	ErrUsedUp = errors.New("grant: used up")
	// ErrRevoked is a real code or token that the account, or the server, took back.
	ErrRevoked = errors.New("grant: revoked")
)

// Reason is the word for an error that the holder of a real token may be told (P10): expired, used_up, revoked,
// wrong_domain, wrong_action, rights_changed. It is empty for every other error.
func Reason(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrExpired):
		return "expired"
	case errors.Is(err, ErrUsedUp):
		return "used_up"
	case errors.Is(err, ErrRevoked):
		return "revoked"
	case errors.Is(err, scope.ErrWrongDomain):
		return "wrong_domain"
	case errors.Is(err, scope.ErrWrongAction):
		return "wrong_action"
	case errors.Is(err, ErrDenied):
		return "rights_changed"
	}
	return ""
}

// A permitError is what a Permit returned: a no, or a fault on the server's side. It is never taken for an error of
// this package, such as when a Permit asks a scope.Set and passes on what that says; whatever else is in it can be
// found by errors.Is and errors.As.
type permitError struct {
	err    error
	denied bool
}

func strictly(permit func(context.Context, Access) error) func(context.Context, Access) error {
	return func(ctx context.Context, a Access) error {
		if err := permit(ctx, a); err != nil {
			return &permitError{err, errors.Is(err, ErrDenied)}
		}
		return nil
	}
}

func (p *permitError) Error() string { return p.err.Error() }

// Is implements the interface of errors.Is.
func (p *permitError) Is(target error) bool {
	switch target {
	case ErrDenied:
		return p.denied
	case ErrInvalid, errConflict, ErrLimited, ErrUnknown, ErrExpired, ErrUsedUp, ErrRevoked,
		scope.ErrSyntax, scope.ErrWiden, scope.ErrWrongDomain, scope.ErrWrongAction:
		return false
	}
	return errors.Is(p.err, target)
}

// As implements the interface of errors.As.
func (p *permitError) As(target any) bool { return errors.As(p.err, target) }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
