// Package admission bounds what strangers and machines can take of a server that attests nodes, so that nobody can
// keep others out.
//
// It protects against
//
//   - connections that are opened and left: two rooms bound the attestations under way, before the proof and after it,
//     and whoever opens more connections replaces his own ([Gate]);
//   - one machine that is bound to two nodes by two attestations at the same moment, each of which finds it bound to
//     none ([EKLock]);
//   - a disk that attempts which prove nothing fill with audit lines ([Allowance]), or one machine that attests in a loop
//     ([Pace]).
//
// It knows no evidence and writes nothing: who asks says what was proved.
package admission
