// Package machinestate is what one server remembers of machines from one attestation to the next.
//
// It protects against an older asset tag that root on a machine puts back, which somebody signed once ([Serials]); and
// against reset and IMA counters that go back and logs that are rewound, by giving an appraisal the state in which the
// last one ended, within a bound of memory ([States]).
//
// A state belongs to one configuration's reference sets and is lost with the server: who has none reads the whole IMA
// log again. Serials outlive a restart where they have a file.
package machinestate
