// Package jose is the one place that signs and verifies JWS and reads JWK: a strict use of go-jose.
//
// The laws:
//
//  1. Nothing is taken from a JWS whose signature was not verified, but through a method that is named Unverified.
//  2. The algorithm is the key's, and in the caller's list: EdDSA with Ed25519, also by that name (RFC 9864), ES256, RS256
//     with 2048 to 4096 bits.
//     What "alg" says must agree, and chooses nothing (RFC 8725 §3.1).
//  3. "typ" is one that the caller expects, so that a token of one kind is none of another (RFC 8725 §3.11).
//  4. No doubt is resolved: a member that is there twice, base64url that is not canonical, text that is not UTF-8, any
//     "crit", a key that brings private parts or contradicts itself, a header that brings a key where none is asked
//     for are refused.
//  5. What is not verified costs little: sizes are bounded before anything is read.
//
// The format is the compact serialization (RFC 7515 §7.1) and nothing else.
//
//	keys, err := jose.ParseSet(jwks)
//	rules := jose.Rules{Types: []string{"at+jwt"}}
//	claims, err := rules.Claims(token, keys)        // the signature, then what is in it
//	err = claims.Live(time.Now(), 10*time.Second)   // exp, nbf, iat
//	ok := claims.Issuer == issuer && slices.Contains(claims.Audience, me)
//
//	signer, err := jose.NewSigner(private, "")      // ed25519.PrivateKey, *ecdsa.PrivateKey or *rsa.PrivateKey
//	token, err := signer.Sign("at+jwt", map[string]any{"iss": issuer, "exp": exp.Unix()})
package jose
