// Package scope says what may be done, and where.
//
// The laws, which its tests hold:
//
//  1. A value is parsed once. Two texts that mean the same give equal values (==), whose String is the one
//     canonical text; parsing that text gives the value back. The zero value means "none" and its text is empty.
//  2. A [Domain] covers itself and what lies below it, on segment boundaries: group:4 does not cover group:42.
//     Covers is reflexive, transitive and antisymmetric. The zero Domain covers nothing and nothing covers it.
//  3. A [Scope] covers another if its domain does and the action is the same. No action implies another.
//  4. [Set.Allows] is yes exactly if one member covers the scope. [Set.Narrow] never widens and never clamps:
//     the answer is the set that was asked for, or an error.
//  5. A [Pattern] that matches a domain matches all that lies below it. What it expands to is a valid Scope;
//     a value can never add a segment or change the action.
//  6. A decision is an error: nil is yes, and the text says why not.
//
// The format. Every scope is a scope-token of RFC 6749 §3.3, so that any OAuth software passes it on unchanged:
//
//	scope   = domain "/" action                       group:42/thread:7/message.write
//	domain  = segment *7( "/" segment )               group:42/thread:7
//	segment = kind ":" id
//	kind    = a-z *31( a-z 0-9 "_" "-" )
//	id      = 1*256( A-Z a-z 0-9 "." "_" "~" "-" or "%" HEX HEX )
//	action  = word *( "." word )                      at most 64 bytes
//	word    = a-z *( a-z 0-9 "_" "-" )
//	set     = scope *127( " " scope )
//
// A domain, a scope or a pattern has at most 1024 bytes. An id may hold any byte: those outside the plain ones are
// written %XX, are decoded once, and compare after that. Canonical is upper-case hex and no escape without need,
// so "a%2fb" becomes "a%2Fb" and "%41" becomes "A".
//
// Use:
//
//	group := scope.MustDomain("group:42")
//	thread, err := group.Child("thread", "7")         // group:42/thread:7; group.Covers(thread)
//	wanted, err := scope.New(thread, "message.write") // group:42/thread:7/message.write
//	granted, err := scope.ParseSet("group:42/member.read group:42/message.write")
//	err = granted.Allows(wanted)                      // nil: yes
//	err = granted.Allows(scope.MustParse("group:43/message.write")) // errors.Is(err, scope.ErrWrongDomain)
package scope
