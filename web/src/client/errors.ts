/** A problem that a person can understand. `title` is short, `message` says what to do, `code` is for programs. */
export class CallError extends Error {
  readonly title: string;
  readonly code: string;

  constructor(title: string, message: string, code = "error") {
    super(message);
    this.title = title;
    this.code = code;
  }
}

/** The server was asked and does not answer. */
export function offline(): CallError {
  return new CallError("The server does not answer", "Check that it is still running, then start again.", "offline");
}

/** The server answers, but no media get through: the call tries the next transport. */
export function unreachable(): CallError {
  return new CallError(
    "No way through the network",
    "The server answers, but sound and picture do not get through. A firewall may block UDP; try another network.",
    "unreachable",
  );
}

/** What stands between the visitor and a call, from the server's refusal. */
export function refused(status: number, body: { error?: string; message?: string }): CallError {
  const titles: Record<string, string> = {
    busy: "Too many visitors wait",
    model: "The agent cannot start",
    token: "The agent asks for a token",
  };
  return new CallError(
    titles[body.error ?? ""] ?? "The server refused the call",
    body.message ?? `It answered with status ${status}.`,
    body.error ?? "error",
  );
}
