//! End-to-end tests; what they are made of is the library beside them.
//!
//! | suite | what it shows |
//! |---|---|
//! | `codex` | the real Codex CLI does each kind of work through real processes, in each wire protocol |
//! | `protocols` | what each protocol demands beyond that: signatures, a thread that changes its provider, its own errors |
//! | `carried` | long histories arrive at the provider unharmed, and a compacted one in their place |
//! | `survival` | a worker is killed under a running task, and Codex does not notice |
//! | `bad_input` | every mistake gets a message for a person and the right answer for Codex |
//! | `healing` | all of ours is killed under a running Codex, and Codex brings it back |
//! | `hostile` | other users, web pages, bombs, silent and dawdling clients get nothing, and nobody suffers from them |
//! | `insurance` | a provider fails before its answer begins, and Codex does not notice |
//! | `sweep` | thousands of failures, each kind at each place of an answer: no answer is broken, no call in part or twice |
//! | `load` | many streams at once, each answer checked, and the worker no larger at the end |
//! | `native` | providers that speak Responses themselves: answers in one piece, state of another provider |
//! | `kept` | what a worker keeps of requests while their answers flow has a total |
//! | `reliability` | killed, replaced, stopped, frozen, starved: nothing is refused and nothing breaks |
//! | `sessions` | Codex under its launcher: what it leaves is ended, what it uses is watched |
//! | `faults` | each of the 38 faults is seen and answered rightly |
//! | `systemd` | under a real systemd: ready by notify, Codex works, a stop leaves nothing |
//! | `transactions` | Codex's `config.toml` survives kills, failing disks and other writers at every step |
//! | `config` | Codex works by its own file on an endpoint, and the file comes back |
//! | `edges` | who may depend on whom |
//! | `standalone` | (not a suite) a worker without a supervisor |
//! | `provider` | the scripted provider is as strict, and as odd on the wire, as it claims |

mod bad_input;
mod carried;
mod codex;
mod config;
mod edges;
mod faults;
mod healing;
mod hostile;
mod incidents;
mod insurance;
mod kept;
mod load;
mod native;
mod protocols;
mod provider;
mod reliability;
mod sessions;
mod standalone;
mod survival;
mod sweep;
mod systemd;
mod transactions;
